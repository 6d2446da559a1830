"""Packaging of aurora_ds. constraints.txt has the versions we test with; here are the oldest that should work."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


class BuildWithShardRecipes(build_py):
    """Wheels carry the dataset recipes of shards/ as aurora_ds/shard_recipes/; a checkout reads shards/ itself."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib) / "aurora_ds" / "shard_recipes"
        target.mkdir(parents=True, exist_ok=True)
        for recipe in sorted((here / "shards").glob("*.yaml")):
            shutil.copy(recipe, target / recipe.name)


version = re.search(
    r'__version__ = "(.+)"', (here / "aurora_ds" / "__init__.py").read_text(encoding="utf-8")
).group(1)
readme = here / "README.md"
# Optional parts, each of which the code asks for by name where it is missing.
fast = ["simplejpeg>=1.8", "torchcodec>=0.9"]
remote = ["s3fs>=2024.9", "gcsfs>=2024.9", "huggingface_hub>=0.30"]
ray = ["ray>=2.40"]
metrics = ["pycocoevalcap>=1.2"]

setup(
    name="aurora_ds",
    version=version,
    description="Aurora prompts for frozen vision-language backbones on WebDataset shards, under DeepSpeed",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithShardRecipes},
    packages=find_packages(include=["aurora_ds", "aurora_ds.*"]),
    package_data={
        "aurora_ds": [
            "recipes/*.yaml",
            "kernels/choices.json",
            "backbones/vocab/*",
            "quickstart/assets/*",
            "quickstart/assets/language/*",
            "quickstart/assets/mplug/*",
            "quickstart/assets/eve/*",
        ]
    },
    # Why each one is here: CONTRIBUTING.md, "Dependencies".
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.18",
        "timm>=1.0.15",
        "transformers>=5.17",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "numpy>=2.0",
        "pillow>=11.0",
        "av>=17.1",
        "ijson>=3.3",
        "fsspec[http]>=2024.9",
        "pydantic>=2.10",
        "omegaconf>=2.3",
        "pyyaml>=6.0",
        "webdataset>=1.0",
        "rich>=13.9",
        "tensorboard>=2.18",
        "psutil>=6.0",
    ],
    extras_require={
        "fast": fast,
        "remote": remote,
        "ray": ray,
        "metrics": metrics,
        "dev": [
            *fast,
            *remote,
            *ray,
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pytest-timeout>=2.3",
            "ruff>=0.12",
            "hypothesis>=6.100",
            "moto[server]>=5.0",
            "megatron-energon>=7.0",
            "opencv-python-headless>=4.10",
            "peft>=0.18",
        ],
        "bench": ["peft>=0.18"],
    },
    entry_points={"console_scripts": ["aurora-ds = aurora_ds.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
