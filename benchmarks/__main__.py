"""`make bench`: every benchmark in turn, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "lite0.py",
    "lite0_cost.py",
    "energy_sampler.py",
    "gpu_baselines.py",
    "run_top5.py",
    "tensorrt_form.py",
    "tensorrt_gpu.py",
    "nvidia_architectures.py",
    "nvidia_numerics.py",
    "resnet_cifar_scores.py",
    "kill_resume.py",
    "training_loop.py",
    "kill_train.py",
    "trainings.py",
    "report_page.py",
)

for script in SCRIPTS:
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, str(HERE / script)], check=False)
