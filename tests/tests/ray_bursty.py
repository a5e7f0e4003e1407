"""The flow's bursty training, shortened: a burst of CPU tasks, idle for a while, a burst of GPU tasks. Tasks take
SECONDS, of three CPUs or one GPU. Prints a JSON line when each burst is submitted and when it is done."""

import json
import sys
import time

import ray

cpu_tasks, gpu_tasks = int(sys.argv[1]), int(sys.argv[2])
seconds, idle = float(sys.argv[3]), float(sys.argv[4])
ray.init(address="auto", _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)


@ray.remote
def work():
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


def burst(name, count, **resources):
    print(json.dumps({f"{name}_submitted": time.time()}))
    nodes = ray.get([work.options(**resources).remote() for _ in range(count)])
    print(json.dumps({f"{name}_done": time.time(), f"{name}_nodes": len(set(nodes))}))


burst("cpu", cpu_tasks, num_cpus=3)
time.sleep(idle)
burst("gpu", gpu_tasks, num_cpus=1, num_gpus=1)
