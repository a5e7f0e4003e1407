"""Tasks of three CPUs, one for each of SECONDS, which are not tried again. Task N writes its worker's pod to DIR/N.began and
DIR/N.ended. With `keep` (else `drop`) each leaves an object on its worker, which this program refers to until it is
killed. It begins when there is no file DIR/wait (any more), and prints that it has joined before."""

import os
import signal
import sys
import time

import ray

folder, keep, seconds = sys.argv[1], sys.argv[2] == "keep", [float(text) for text in sys.argv[3:]]
ray.init(address="auto", _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)
print("joined")
while os.path.exists(os.path.join(folder, "wait")):
    time.sleep(0.1)


def write(name):
    # Whole, or not there.
    path = os.path.join(folder, name)
    with open(path + ".part", "w") as file:
        file.write(os.environ["RAY_CLOUD_INSTANCE_ID"])
    os.rename(path + ".part", path)


@ray.remote(num_cpus=3, max_retries=0)
def work(number, seconds, keep):
    write(f"{number}.began")
    time.sleep(seconds)
    write(f"{number}.ended")
    # A small one would be kept elsewhere.
    return bytes(2**20) if keep else None


tasks = [work.remote(number, seconds, keep) for number, seconds in enumerate(seconds)]
ray.wait(tasks, num_returns=len(tasks), fetch_local=False)
if keep:
    signal.pause()
