"""`python -m esformer.engine.worker DESCRIPTOR`: a worker process, which knows nothing of the work but its tasks."""

import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from esformer.children import end_with_parent
from esformer.engine.processes import serve

if __name__ == "__main__":
    end_with_parent()
    torch.set_num_threads(1)
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, OSError):  # whoever sent the tasks is gone
        serve(connection, connection.recv())
