"""Training, readable from top to bottom: build the task, wrap it in the engine, resume, loop, checkpoint,
evaluate.

`aurora-ds train RECIPE [key=value …] --output DIR`, or on many GPUs and hosts the same through the launcher:
`deepspeed [--hostfile HOSTS] --module aurora_ds.train RECIPE [key=value …] --output DIR`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from aurora_ds import arguments, training_state
from aurora_ds.assemble import Assembled, adapter_files, build_task, copy_vocabulary, save_full, start_from
from aurora_ds.config import RunConfig
from aurora_ds.data.loader import annotated_loader, train_plan
from aurora_ds.data.plan import TrainPlan
from aurora_ds.data.unreadable import Limit
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import find_adapter, print_results, results_record, write_results
from aurora_ds.prompts.adapter import save_adapter
from aurora_ds.prompts.kernel_path import warm_up
from aurora_ds.recipe import load_config, to_yaml
from aurora_ds.report import attach_report, hyperparameters
from aurora_ds.runtime import checkpoint, failure, inspection, process_group
from aurora_ds.runtime.ahead import Ahead
from aurora_ds.runtime.engine import Engine, StepReport, build
from aurora_ds.runtime.expert_figures import ExpertFigures
from aurora_ds.runtime.guards import Guards, NotFinite
from aurora_ds.runtime.heartbeat import BACKWARD, FORWARD, SAVING, Heartbeat
from aurora_ds.runtime.monitor import Monitor, memory, memory_mb
from aurora_ds.runtime.progress import Progress
from aurora_ds.runtime.quarantine import Quarantine
from aurora_ds.runtime.ranks import Ranks, straggler_in_words
from aurora_ds.runtime.run_folder import (
    claim_output,
    own_checkpoint,
    release_output,
    replace_file,
    replace_folder,
)
from aurora_ds.runtime.stop import StopRequest
from aurora_ds.runtime.trace import Traces
from aurora_ds.runtime.window import Window


def run(
    config: RunConfig,
    output: str | Path,
    resume: str = "auto",
    deepspeed_config: str | Path | None = None,
    dry_run: bool = False,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Train `config` into the folder `output`; every rank calls it. Returns the final results (also in
    results.json), or {"stopped": why, "step": …} when SIGTERM or SIGUSR1 asked the run to end early.

    Args:
        resume: auto, required, never, or a checkpoint. dry_run: check everything that can be wrong, print
        the report, stop. accept_changes: resume although what the numbers depend on has changed.
    Raises: AuroraError for wrong input and wrong state; the last good checkpoint is kept.
    """
    failure.record_collectives(output)
    process_group.start(config.train.collective_timeout_seconds)
    stop = StopRequest()
    try:
        assembled = build_task(config)
        world_size, rank = process_group.world_size(), process_group.rank()
        plan = train_plan(assembled.config, world_size, rank, assembled.wiring.kind)
        assembled.wiring.check()
        if process_group.rank() == 0:
            print(attach_report(assembled, plan.steps_per_epoch), flush=True)
        output, start = Path(output), config.train.start_from
        if dry_run:
            if start is not None:
                start_from(assembled, find_adapter(start))
            return {}
        claim_output(output, assembled.config.model_dump(mode="json"), resume, accept_changes)
        try:
            with (
                stop.listening(),
                failure.reporting(output),
                process_group.explaining_lost_ranks(),
                Heartbeat(
                    output,
                    stop,
                    config.train.collective_timeout_seconds,
                    config.train.unreachable_seconds,
                    partial(failure.write, output),
                ) as heartbeat,
            ):
                # a checkpoint has what became of the adapter, which may be gone by now
                found = checkpoint.find(output, resume, own_checkpoint(output))
                if start is not None and found is None:
                    start_from(assembled, find_adapter(start))
                process_group.first_rank(replace_file, output / "config.yaml", to_yaml(assembled.config))
                training = Training(assembled, output, plan, deepspeed_config, heartbeat)
                return training.run(found, accept_changes)
        finally:
            release_output(output)
    finally:
        process_group.stop()


class Training:
    """One run: the engine and everything that watches it."""

    def __init__(
        self,
        assembled: Assembled,
        output: Path,
        plan: TrainPlan,
        deepspeed_config: str | Path | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.assembled, self.config, self.output = assembled, assembled.config, output
        self.task, self.wiring = assembled.task, assembled.wiring
        self.steps_per_epoch, self.plan_fingerprint = plan.steps_per_epoch, plan.fingerprint()
        train = self.config.train
        # the schedule follows the epochs; max_steps only stops early, so that it may change when a run is
        # resumed
        self.total = train.epochs * self.steps_per_epoch
        self.last_step = min(self.total, train.max_steps or self.total)
        self.engine: Engine = build(self.task, train, deepspeed_config, self.total, self.steps_per_epoch)
        self.times, monitor = self.engine.times, self.config.monitor
        self.traces = Traces(output, self.times, monitor.profile_steps, monitor.profile_ranks)
        self.experts = ExpertFigures(self.task)
        self.best: dict[str, Any] = {}
        self.heartbeat, self.stopped, self.saved_step = heartbeat, "", 0

    def run(self, found: Path | None, accept_changes: bool = False) -> dict[str, Any]:
        """Resume from `found`, train to the last step, evaluate, leave adapter/ and results.json."""
        changed = "" if found is None else self._restore(found, accept_changes)
        if self.task.prompts is not None:
            process_group.first_on_node(warm_up, self.task.prompts, self.engine.device, self.engine.dtype)
        step, train = self.engine.step, self.config.train
        self.guards = Guards(self.engine, train.moved_after)
        self.wiring.before_training(self.task, self.output)
        samples = step * train.global_batch_size
        self.monitor = Monitor(
            self.output,
            self.config.monitor.tensorboard,
            *((step, samples) if step else (None, None)),
            evaluates_again=step == self.last_step or self._evaluation_is_due(),
        )
        self.monitor.text("config", to_yaml(self.config), step)
        self.ranks, self.window = Ranks(), Window()
        self.monitor.text("ranks", self.ranks.text(), step)
        limit = Limit(self.config.data.max_bad_share, self.steps_per_epoch * train.global_batch_size)
        self.quarantine = Quarantine(self.output, limit, fresh=not step)
        started, record = time.perf_counter(), {}
        with Progress(self.last_step, step) as self.progress:
            if step:
                self.progress.message(f"resumed after step {step}, from {found}")
            if changed:
                self.progress.message(f"changed since that checkpoint: {changed}")
            self.stopped = self.heartbeat.stop.agreed()
            while self.engine.step < self.last_step and not self.stopped:
                # before the epoch, so that a run which was killed while it evaluated does so when it comes back
                if self._evaluation_is_due():
                    self._evaluate()
                self._epoch(self.engine.step // self.steps_per_epoch)
            self.stopped = self.stopped or self.heartbeat.stop.agreed()
            if self.stopped:
                return self._leave()
            self._save_adapter(self.output / "adapter")
            record = self._evaluate(final=True, seconds=time.perf_counter() - started)
        self.monitor.hyperparameters(hyperparameters(self.assembled), record["metrics"])
        self.monitor.close()
        return record

    def _leave(self) -> dict[str, Any]:
        """End early, as all ranks were asked to: everything up to this step is saved."""
        if self.engine.step > self.saved_step:
            self._checkpoint()
        self.monitor.close()
        done = "before the first step"
        if self.engine.step:
            done = f"step {self.engine.step} of {self.last_step} is done and saved"
        self.progress.message(
            f"Ended early: {self.stopped}; {done}. Start again with --resume auto to go on."
        )
        return {"stopped": self.stopped, "step": self.engine.step}

    # ---- the loop --------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        """From wherever the run stands to the end of the epoch, or of the run."""
        start = self.engine.step % self.steps_per_epoch
        loader = annotated_loader(
            self.config,
            self.wiring.kind,
            self.wiring.train_texts(self.assembled.tokenizer),
            process_group.world_size(),
            process_group.rank(),
            epoch,
            start,
            self.wiring.every_annotation,
        )
        self.engine.train()
        ahead = Ahead(self.window.timed(iter(loader)), self.quarantine, self.heartbeat.stop)
        last = min((epoch + 1) * self.steps_per_epoch, self.last_step)
        while self.engine.step < last and not self.stopped:
            step = self.engine.step + 1
            measure = self._is_logged(step) or self.traces.wanted(step)
            with self.traces.step(step), self.times.step(measure):
                report = self._step(ahead, is_last=step == last)
            if report is not None:
                self._after_step(report)
            if ahead.asked_to_end:
                self.stopped = self.heartbeat.stop.agreed()

    def _step(self, ahead: Ahead, is_last: bool) -> StepReport | None:
        """One optimizer step; None, and nothing done, when the ranks agree to end before an epoch's first one."""
        train, report, losses, batch = self.config.train, None, {}, {}
        if not ahead.there:
            self._read(ahead, self.engine.step + 1)
            ahead.agree()
            if ahead.asked_to_end:
                return self.times.forget()
        for micro in range(train.accumulation):
            batch = ahead.take()
            self.heartbeat.at(FORWARD, self.engine.step + 1)
            process_group.seed_step(self.config.seed, self.engine.step, micro)
            with self.times.part("forward"):
                losses = self.engine.forward(
                    batch,
                    what="loss",
                    **self.wiring.loss_arguments(self.engine.step, micro, self.steps_per_epoch),
                )
            ends_step = micro + 1 == train.accumulation
            if not (ends_step and is_last):
                self._read(ahead, self.engine.step + 1 + ends_step)
            self.heartbeat.at(BACKWARD, self.engine.step + 1)
            with self._kept_for_inspection(self.engine.step + 1, batch, losses):
                self.guards.check_losses(losses, batch["keys"], self.engine.step + 1, ahead.agree)
            measure = (self.engine.step + 1) % self.config.monitor.log_every == 0
            report = self.engine.backward_and_step(losses["loss"], measure_update=measure)
            self.window.add(losses, batch)
        with self._kept_for_inspection(report.step, batch, losses):
            self.guards.after_step(report)
        return report

    def _read(self, ahead: Ahead, step: int) -> None:
        """Wait for a batch of `step`, while a GPU still works on what it was given."""
        self.heartbeat.at("waiting for data", step)
        with self.times.part("data"):
            ahead.read()

    def _is_logged(self, step: int) -> bool:
        return step % self.config.monitor.log_every == 0 or step == self.last_step

    @contextmanager
    def _kept_for_inspection(
        self, step: int, batch: dict[str, Any], losses: dict[str, Any]
    ) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            place = inspection.keep(self.output, step, self.engine, batch, losses, error)
            raise AuroraError(f"{error} The batches of all ranks and the state are in {place}.") from error

    def _after_step(self, report: StepReport) -> None:
        step, train = report.step, self.config.train
        if self._is_logged(step):
            figures = self.window.figures(train.global_batch_size) | {
                "lr": report.lr,
                "gradient_norm": report.grad_norm,
                "epoch": step / self.steps_per_epoch,
                **memory(),
                **self.times.figures(),
                **self.wiring.figures(self.task, step, self.steps_per_epoch),
                **self.experts.own(),
            }
            if report.update_ratio is not None:
                figures["update_to_weight"] = report.update_ratio
            reduced, loads = self.experts.shown(self.ranks.reduce(figures))
            slowest = straggler_in_words(reduced)
            figures = {f"train/{name}": value for name, value in reduced.items()}
            self.monitor.scalars(figures, step, step * train.global_batch_size)
            for name, load in loads.items():
                self.monitor.counts(f"train/{name}", load, step)
            if figures["train/skipped_samples"]:
                self.quarantine.collect(self.monitor, step, step * train.global_batch_size)
            self.progress.update(
                step,
                loss=figures["train/loss"],
                **{label: figures[f"train/{name}"] for label, name in self.wiring.shown.items()},
                per_s=figures["train/samples_per_second"],
                **({"slowest": slowest} if slowest else {}),
            )
        ends_epoch = step % self.steps_per_epoch == 0
        if (
            (train.save_every and step % train.save_every == 0)
            or (not train.save_every and ends_epoch)
            or step == self.last_step
        ):
            with self.window.saving():
                self._checkpoint()

    # ---- state -----------------------------------------------------------------------------------

    def _restore(self, found: Path, accept_changes: bool) -> str:
        """Put the checkpoint in place. Returns what changed since it was written, in words."""
        loaded = checkpoint.load(found, self.engine)
        changed = training_state.check(
            found, loaded, self.assembled.backbone, self.plan_fingerprint, self.config, accept_changes
        )
        self.task.load_buffers(loaded.task_buffers)
        self.best, self.saved_step = loaded.state.get("best", {}), loaded.step
        return changed

    def _checkpoint(self) -> None:
        self.heartbeat.at(SAVING, self.engine.step)
        state = training_state.of(
            self.engine.step,
            self.steps_per_epoch,
            self.plan_fingerprint,
            self.config,
            self.assembled.backbone,
            self.best,
        )
        checkpoint.save(
            self.output,
            self.engine.step,
            self.engine,
            partial(adapter_files, self.assembled),
            state,
            self.task.buffers_to_save(self.config.train.save_queue),
            self.config.train.keep_last,
        )
        self.saved_step = self.engine.step

    def _save_adapter(self, folder: Path) -> None:
        """The trained values alone: what evaluation, export and other people need."""
        values = self.engine.trainable_values()

        def write(place: Path) -> None:
            tensors, config = adapter_files(self.assembled, values)
            if self.task.prompts is None:
                save_full(place, tensors, config)
                copy_vocabulary(place, self.assembled.tokenizer)
            else:
                save_adapter(place, tensors, config)

        process_group.first_rank(replace_folder, folder, write)

    # ---- evaluation ------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        """Between two epochs, by train.evaluate_every."""
        epochs, inside = divmod(self.engine.step, self.steps_per_epoch)
        every = self.config.train.evaluate_every
        return bool(every and epochs and not inside and epochs % every == 0)

    def _evaluate(self, final: bool = False, seconds: float = 0.0) -> dict[str, Any]:
        """Judge the present weights; keep the best adapter; at the end, write results.json."""
        self.heartbeat.at("evaluation", self.engine.step)
        self.engine.eval()
        started = time.perf_counter()
        lockstep = self.engine.zero_stage == 3 and self.wiring.keeps_step
        with nullcontext() if lockstep else self.engine.whole():
            evaluation = self.wiring.evaluate(self.engine.forward, self.assembled.tokenizer, lockstep)
        record = results_record(
            self.assembled, evaluation, time.perf_counter() - started, str(self.output / "adapter")
        )
        record |= {
            "step": self.engine.step,
            "train_seconds": round(seconds, 2),
            "peak_memory_mb": round(memory_mb(), 1),
        }
        step = self.engine.step
        self.monitor.scalars(
            {f"eval/{name}": value for name, value in evaluation.metrics.items()},
            step,
            step * self.config.train.global_batch_size,
        )
        headline = self.wiring.headline
        reached = evaluation.metrics.get(headline, float("-inf"))  # a split without ground truth has none
        if reached > self.best.get(headline, float("-inf")):
            self.best = {"step": step, headline: reached}
            if self.config.train.evaluate_every:
                self._save_adapter(self.output / "best")
        record["best"] = self.best
        if process_group.rank() == 0 and self.config.monitor.gallery_queries:
            shown = self.wiring.picture(self.assembled.tokenizer, evaluation)
            if shown is not None:
                self.monitor.image(f"eval/{shown[0]}", shown[1], step)
        if final:
            process_group.first_rank(write_results, self.output, evaluation, record)
            if process_group.rank() == 0:
                print_results(self.wiring, record)
        self.engine.train()
        return record


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m aurora_ds.train`, `deepspeed --module aurora_ds.train`, `torchrun -m aurora_ds.train`."""
    parser = arguments.module_parser("aurora_ds.train", "Train Aurora prompts, heads or everything.")
    arguments.add_train(parser)
    chosen = arguments.parse(parser, list(sys.argv[1:] if argv is None else argv))

    def command() -> int:
        run(
            load_config(chosen.recipe, chosen.overrides),
            chosen.output,
            chosen.resume,
            chosen.deepspeed_config,
            chosen.dry_run,
            chosen.accept_changes,
        )
        return 0

    return arguments.finish(command, debug=getattr(chosen, "debug", False))


if __name__ == "__main__":
    sys.exit(main())
