"""The Triton kernels. Modules here import Triton at once; the rest of the package imports them when they are to run."""
