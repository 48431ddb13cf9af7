"""A pretraining under faults: everything that it needs dies in turn, and in the end it must be what it would have been.

    make chaos                                         seeds 1, 2 and 3, ten minutes each
    python -m tests.chaos --seeds 4 --faults lose_head --keep

A cluster of several nodes, an S3 server behind a proxy and an MLflow server run on this machine. A job (train.py) pretrains on
two workers, and at steps that the seed draws, something is killed, stopped or spoilt (faults.py). The job is started
again with the same command where it ended, as any scheduler would. In the end the steps, the frames of each epoch, MLflow's
records and the weights are compared with what they should be; those of the weights come from the same job without faults.
"""
