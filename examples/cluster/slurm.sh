#!/bin/bash
# Two machines of eight GPUs under Slurm: `sbatch examples/cluster/slurm.sh`; for 64 GPUs, --nodes=8. guidance/workflow.md explains it.
# --signal: seconds before the time limit at which the run is asked to stop; more than an epoch's time/optimise_s and a save.
#SBATCH --job-name=flow-factory
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ff-train examples/grpo/lora/flux1.yaml --max_restarts 20 run_name=flux1 log.save_model_only=false model.resume_path=auto || code=$?

# stopped before its end, with its state saved: the same job again, which goes on
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
