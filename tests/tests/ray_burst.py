"""A burst of tasks: COUNT of them, of CPUS each, that take SECONDS. One JSON line when they are submitted, one when done.
With a FILE, each task adds a line to it when it starts, so that one that is tried again has two."""

import json
import sys
import time

import ray

count, cpus, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
started = sys.argv[4] if len(sys.argv) > 4 else None
ray.init(address="auto", _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)


@ray.remote(num_cpus=cpus)
def work(task):
    if started:
        with open(started, "a") as file:
            file.write(f"{task}\n")
    time.sleep(seconds)


print(json.dumps({"submitted": time.time()}))
ray.get([work.remote(task) for task in range(count)])
print(json.dumps({"done": time.time()}))
