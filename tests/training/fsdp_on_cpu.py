"""Runs a program whose Accelerator may shard on CPUs: `python fsdp_on_cpu.py PROGRAM [ARGUMENTS ...]`.

Accelerate lets FSDP in where it finds several accelerators, and there alone. Here it finds several of them, whose
backend is gloo; ACCELERATE_TORCH_DEVICE=cpu makes them CPUs. All that follows is what accelerate does on GPUs.
"""

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
