# Your cluster, for all jobs: edit this file, or keep one for each cluster and name it in ESFORMER_CLUSTER.
# Read by `slurm/submit` (the options) and by the job itself (the environment).

nodes=1
gpus=4 # of each node; every one gets a task

options=(
    # --partition=gpu
    # --account=my-project
    --nodes=$nodes
    --gpus-per-node=$gpus
    --ntasks-per-node=$gpus # not --ntasks, which can spread them unevenly
    --cpus-per-task=8       # they load the images: data.workers
    --time=24:00:00         # at the limit the job goes back into the queue and goes on later
)

# What makes `python` the one with ESFormer: a virtual environment, conda, or modules. Runs before every job.
environment() {
    if [[ -f .venv/bin/activate ]]; then source .venv/bin/activate; fi
    # module load python/3.12 cuda/12.8
    # export WANDB_MODE=offline HF_HOME=/scratch/$USER/hf
}
