"""A FAKE AWS for labs and tests: moto, corrected where it differs from AWS in what an autoscaler relies on.

It speaks the real wire protocol (AWS Query over HTTP) to any SDK whose endpoint is set to it. What a test against it
proves is what the client sent and how it took the answers, not how AWS behaves. Nothing here is shipped.

  corrected    SetDesiredCapacity outside min..max, and calls that name an unknown group or instance, are a
               ValidationError; so is a termination with decrement that would go below min. DescribeScalingActivities
               tells of launches, and of launches that failed (fault "Launch" below), which are tried again. A
               termination hook holds an instance that is terminated by id in Terminating:Wait, until it is completed or
               its heartbeat times out.
  added        CompleteLifecycleAction, RecordLifecycleActionHeartbeat, LaunchInstances.
  as in moto   Instances are InService at once: launch hooks hold nothing. Nor is an instance held that goes because
               the desired capacity was lowered. HonorCooldown is ignored.

Beside the API it serves the lab:
  GET  /_lab/asg      all groups with their instances, as JSON
  POST /_lab/faults   sets the faults, a JSON list; GET shows what is left of them, DELETE clears them:
                        {"action": "SetDesiredCapacity", "code": "Throttling", "status": 400, "times": 3}
                        {"delay_ms": 2000}                        every action, for ever
                        {"action": "Launch", "group": "gpu", "code": "InsufficientInstanceCapacity"}
                      The first that fits a call is used. "Launch" is no API action: the group's instance does not come.
Each API call is one line in the log: {"t", "service", "action", "params", "status", "ms", "fault"}; t is Unix time in
milliseconds at its arrival, ms how long the answer took.

The second half plays what EC2, the kubelet and the cloud-controller-manager do together: an instance becomes a Node
(run by KWOK) after the boot delay, and the Node of an instance that is gone is deleted.

usage: fake_aws.py CONFIG.json   (written by `cargo xtask lab up`)
"""

import http.client
import json
import ssl
import sys
import threading
import time
import uuid
from io import BytesIO
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import boto3
from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.models import (
    Activity,
    AutoScalingBackend,
    FakeAutoScalingGroup,
    TerminateInstanceActivity,
    autoscaling_backends,
)
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT = "123456789012"
TICK_SECONDS = 1  # AWS tries a failed launch again, less often the longer it fails; a test should not wait for that.
PASS_SECONDS = 0.05

lock = threading.RLock()  # moto's backends are not thread-safe


def say(what, **fields):
    print(json.dumps({"t": int(time.time() * 1000), "what": what, **fields}), flush=True)


# --- Faults


class Faults:
    def __init__(self):
        self.rules = []

    def take(self, action, group=None):
        """The first rule that fits, used up by one; None if there is none."""
        with lock:
            for rule in self.rules:
                # A launch is no call: a rule for every action means every call.
                if rule.get("action", action if action != "Launch" else None) != action:
                    continue
                if "group" in rule and rule["group"] != group:
                    continue
                if "times" in rule:
                    rule["times"] -= 1
                    if rule["times"] <= 0:
                        self.rules.remove(rule)
                return rule
        return None


faults = Faults()


def error_body(service, code, message):
    """EC2 has its own form; every other Query service has the common one."""
    code, message, request = escape(code), escape(message), uuid.uuid4()
    if service == "ec2":
        return (f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
                f"<RequestID>{request}</RequestID></Response>").encode()
    namespace = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
    return (f'<ErrorResponse xmlns="{namespace}"><Error><Type>Sender</Type><Code>{code}</Code>'
            f"<Message>{message}</Message></Error><RequestId>{request}</RequestId></ErrorResponse>").encode()


# --- Corrections of moto

activities = {}  # group name -> newest first


def correct(owner, name):
    """Replaces a method of moto; the new one gets the old one first."""

    def replace(new):
        old = getattr(owner, name)
        setattr(owner, name, lambda *args, **more: new(old, *args, **more))

    return replace


def named(backend, group_name):
    if group_name not in backend.autoscaling_groups:
        raise ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup '{group_name}' not found")
    return backend.autoscaling_groups[group_name]


@correct(AutoScalingBackend, "set_desired_capacity")
def set_desired_capacity(moto, backend, group_name, desired):
    group = named(backend, group_name)
    if desired > group.max_size:
        raise ValidationError(f"New SetDesiredCapacity value {desired} is above max value {group.max_size} "
                              "for the AutoScalingGroup.")
    if desired < group.min_size:
        raise ValidationError(f"New SetDesiredCapacity value {desired} is below min value {group.min_size} "
                              "for the AutoScalingGroup.")
    moto(backend, group_name, desired)


@correct(AutoScalingBackend, "terminate_instance")
def terminate_instance(moto, backend, instance_id, should_decrement):
    owners = [(group, state) for group in backend.autoscaling_groups.values()
              for state in group.instance_states if state.instance.id == instance_id]
    if not owners:
        raise ValidationError(f"Instance Id not found - No managed instance found for instance ID: {instance_id}")
    group, state = owners[0]
    if instance_id in held:
        return TerminateInstanceActivity(state.instance, group.desired_capacity)
    if should_decrement and group.desired_capacity <= group.min_size:
        raise ValidationError(f"Currently, desiredSize equals minSize ({group.min_size}). Terminating instance without "
                              "replacement will violate group's min size constraint. Either set "
                              "shouldDecrementDesiredCapacity flag to false or lower group's min size.")
    hooks = [hook for hook in backend.describe_lifecycle_hooks(group.name)
             if hook.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING"]
    if hooks:
        activity = Held(backend, group, state, hooks[0].heartbeat_timeout).begin(should_decrement)
    else:
        activity = moto(backend, instance_id, should_decrement)
    record(group, activity)
    return activity


class Held:
    """An instance in Terminating:Wait."""

    def __init__(self, backend, group, state, timeout):
        self.backend, self.group, self.state, self.timeout = backend, group, state, timeout

    def begin(self, should_decrement):
        before = self.group.desired_capacity
        self.state.lifecycle_state = "Terminating:Wait"
        self.state.protected_from_scale_in = True  # It does not count any more; moto would choose it again.
        held[self.state.instance.id] = self
        self.heartbeat()
        # Without decrement this launches the one that takes its place.
        self.group.set_desired_capacity(before - 1 if should_decrement else before)
        return TerminateInstanceActivity(self.state.instance, before)

    def heartbeat(self):
        self.deadline = time.monotonic() + self.timeout

    def end(self):
        del held[self.state.instance.id]
        self.group.instance_states.remove(self.state)
        self.backend.ec2_backend.terminate_instances([self.state.instance.id])


held = {}  # instance id -> Held


def held_instance(response):
    instance_id = response._get_param("InstanceId")
    if instance_id not in held:
        raise ValidationError(f"No active Lifecycle Action found with instance ID {instance_id}")
    return held[instance_id]


def complete_lifecycle_action(response):
    held_instance(response).end()
    return EmptyResult()


def record_lifecycle_action_heartbeat(response):
    held_instance(response).heartbeat()
    return EmptyResult()


launches = {}  # client token -> what LaunchInstances answered


def launch_instances(response):
    """As AWS does it: at once, as many as there are; what fails counts as desired only if it is to be tried again."""
    group = named(response.autoscaling_backend, response._get_param("AutoScalingGroupName"))
    count, token = response._get_int_param("RequestedCapacity"), response._get_param("ClientToken")
    if token in launches:
        return ActionResult(launches[token])
    if group.desired_capacity + count > group.max_size:
        raise ValidationError(f"The requested capacity would exceed the max size {group.max_size} of the group.")
    known = {state.instance.id for state in group.instance_states}
    earlier = len(activities.get(group.name, []))
    group.set_desired_capacity(group.desired_capacity + count)
    new = [state.instance for state in group.instance_states if state.instance.id not in known]
    failed = [activity for activity in activities[group.name][:len(activities[group.name]) - earlier]
              if activity.status_code == "Failed"]
    if response._get_param("RetryStrategy") != "retry-with-group-configuration":
        group.desired_capacity -= len(failed)
    place = {"InstanceType": group.instance_type, "MarketType": "OnDemand",
             "AvailabilityZone": group.availability_zones[0], "SubnetId": group.vpc_zone_identifier.split(",")[0]}
    launches[token] = {
        "AutoScalingGroupName": group.name, "ClientToken": token,
        "Instances": [{**place, "InstanceIds": [instance.id for instance in new]}] if new else [],
        "Errors": [{**place, "ErrorCode": activity.error_code, "ErrorMessage": activity.status_message}
                   for activity in failed]}
    return ActionResult(launches[token])


for addition in (complete_lifecycle_action, launch_instances, record_lifecycle_action_heartbeat):
    setattr(AutoScalingResponse, addition.__name__, addition)


@correct(FakeAutoScalingGroup, "replace_autoscaling_group_instances")
def launch(moto, group, count, tags):
    for _ in range(count):
        fault = faults.take("Launch", group.name)
        activity = Activity("Launching a new EC2 instance", "the desired capacity is above the number of instances",
                            group)
        if fault:
            activity.status_code = "Failed"
            activity.error_code = fault["code"]  # Not on the wire; for LaunchInstances.
            activity.status_message = fault.get("message", f"{fault['code']} - We currently do not have sufficient "
                                                f"{group.instance_type} capacity in the Availability Zone you requested "
                                                f"({group.availability_zones[0]}). Launching EC2 instance failed.")
        else:
            moto(group, 1, tags)
            activity.description += f": {group.instance_states[-1].instance.id}"
            activity.status_code = "Successful"
        activity.progress = 100
        record(group, activity)


def record(group, activity):
    activities.setdefault(group.name, []).insert(0, activity)


@correct(AutoScalingResponse, "describe_scaling_activities")
def describe_scaling_activities(_moto, response):
    name = response._get_param("AutoScalingGroupName")
    limit = response._get_int_param("MaxRecords") or 100
    with_name = activities.get(name, []) if name else sum(activities.values(), [])
    return ActionResult({"Activities": with_name[:limit]})


def keep_time(region):
    """What AWS does by itself: launches that failed are tried again, and a hook without heartbeats ends."""
    while True:
        time.sleep(TICK_SECONDS)
        with lock:
            for instance in list(held.values()):
                if time.monotonic() >= instance.deadline:
                    instance.end()
            for group in autoscaling_backends[ACCOUNT][region].autoscaling_groups.values():
                missing = (group.desired_capacity or 0) - len(group.active_instances())
                if missing > 0:
                    group.set_desired_capacity(group.desired_capacity)


# --- The API


class Api:
    """The WSGI application: the lab's own paths, faults, the log, and moto behind them."""

    def __init__(self, log, region):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.log = open(log, "a", buffering=1)
        self.region = region
        self.ready = False

    def __call__(self, environ, start_response):
        arrived = time.time()
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        if path.startswith("/_lab/"):
            status, reply = self.lab(environ["REQUEST_METHOD"], path, body)
            return answer(start_response, status, "application/json", json.dumps(reply).encode())

        environ["wsgi.input"] = BytesIO(body)
        params = dict(parse_qsl(body.decode("latin1"), keep_blank_values=True))
        action = params.pop("Action", path)
        params.pop("Version", None)
        service = service_of(environ)
        fault = faults.take(action, params.get("AutoScalingGroupName")) if self.ready else None
        if fault:
            time.sleep(fault.get("delay_ms", 0) / 1000)
        statuses = []
        if fault and "code" in fault:
            status = fault.get("status", 400)
            statuses.append(status)
            text = error_body(service, fault["code"], fault.get("message", f"{fault['code']}, said the lab"))
            reply = answer(start_response, f"{status} Fault", "text/xml", text)
        else:
            def note(status, headers, *rest):
                statuses.append(int(status.split()[0]))
                return start_response(status, headers, *rest)

            with lock:
                reply = list(self.moto(environ, note))
        if self.ready:
            line = {"t": int(arrived * 1000), "service": service, "action": action, "params": params,
                    "status": statuses[-1], "ms": int((time.time() - arrived) * 1000), "fault": fault is not None}
            self.log.write(json.dumps(line) + "\n")
        return reply

    def lab(self, method, path, body):
        if path == "/_lab/asg":
            if not self.ready:
                return "503 Service Unavailable", "the groups are being made"
            return "200 OK", groups(self.region)
        if path == "/_lab/faults":
            with lock:
                if method == "POST":
                    faults.rules = json.loads(body)
                elif method == "DELETE":
                    faults.rules = []
                return "200 OK", faults.rules
        return "404 Not Found", f"no {path}: use /_lab/asg or /_lab/faults"


def answer(start_response, status, kind, body):
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def service_of(environ):
    """From the signature's scope, .../REGION/SERVICE/aws4_request; the Query protocol names it nowhere else."""
    scope = environ.get("HTTP_AUTHORIZATION", "").split("Credential=")[-1].split(",")[0].split("/")
    return scope[3] if len(scope) == 5 else "unknown"


def groups(region):
    with lock:
        backend = autoscaling_backends[ACCOUNT][region]
        return [{"name": group.name, "min": group.min_size, "max": group.max_size, "desired": group.desired_capacity,
                 "instances": [{"id": state.instance.id, "state": state.lifecycle_state,
                                "type": state.instance.instance_type, "zone": state.instance.placement.zone,
                                "ip": state.instance.private_ip, "node": private_name(state.instance.private_ip, region)}
                               for state in group.instance_states]}
                for group in backend.autoscaling_groups.values()]


def private_name(ip, region):
    """moto names every instance as in us-east-1."""
    return f"ip-{ip.replace('.', '-')}.{region}.compute.internal"


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Headers and body are two writes; without this each answer may take 40 ms.

    def log_request(self, *_):
        pass


# --- The groups asked for


def make_groups(config):
    region = config["region"]
    client = {"endpoint_url": f"http://127.0.0.1:{config['port']}", "region_name": region,
              "aws_access_key_id": "lab", "aws_secret_access_key": "lab"}
    ec2, autoscaling = boto3.client("ec2", **client), boto3.client("autoscaling", **client)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = {}
    for group in config["groups"]:
        zone = region + group["zone"]
        if zone not in subnets:
            cidr = f"10.0.{16 * len(subnets)}.0/20"
            made = ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)
            subnets[zone] = made["Subnet"]["SubnetId"]
        ec2.create_launch_template(LaunchTemplateName=group["name"], LaunchTemplateData={
            "ImageId": "ami-12c6146b", "InstanceType": group["type"]})
        autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=group["name"], MinSize=group["min"], MaxSize=group["max"],
            DesiredCapacity=group["desired"], VPCZoneIdentifier=subnets[zone], Tags=tags_of(group),
            LaunchTemplate={"LaunchTemplateName": group["name"], "Version": "$Default"})


def tags_of(group):
    """What an autoscaler reads to know the nodes of a group that has none, in the form that users already have."""
    template = "k8s.io/cluster-autoscaler/node-template"
    tags = {"k8s.io/cluster-autoscaler/enabled": "true", "k8s.io/cluster-autoscaler/lab": "owned",
            "kubernetes.io/cluster/lab": "owned"}
    tags |= {f"{template}/label/{key}": value for key, value in group["labels"].items()}
    tags |= {f"{template}/taint/{taint['key']}": f"{taint['value']}:{taint['effect']}" for taint in group["taints"]}
    return [{"Key": key, "Value": value, "PropagateAtLaunch": True, "ResourceId": group["name"],
             "ResourceType": "auto-scaling-group"} for key, value in tags.items()]


# --- Instances become Nodes


class Kubernetes:
    """Just enough of a client: one connection, opened again when it breaks."""

    def __init__(self, config):
        self.host = urlsplit(config["server"]).netloc
        self.tls = ssl.create_default_context(cafile=config["ca_file"])
        self.tls.load_cert_chain(config["cert_file"], config["key_file"])
        self.connection = None

    def call(self, method, path, body=None):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(self.host, context=self.tls, timeout=30)
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = self.connection.getresponse()
            return reply.status, json.loads(reply.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise


class Nodes:
    """Makes the Nodes follow the instances. Each pass may fail at any point; the next one finishes its work."""

    def __init__(self, config, kubernetes):
        self.config = config
        self.kubernetes = kubernetes
        self.groups = {group["name"]: group for group in config["groups"]}
        self.boots = {}  # instance id -> when it has booted
        self.known = None  # instance id -> name of its Node

    def follow(self):
        if self.known is None:
            self.known = self.listed()
        alive = {instance["id"]: (group["name"], instance) for group in groups(self.config["region"])
                 for instance in group["instances"]}
        # First, because a new instance may have got the address, and so the name, of one that is gone.
        for instance_id in [known for known in self.known if known not in alive]:
            name = self.known[instance_id]
            self.expect({200, 202, 404}, "DELETE", f"/api/v1/nodes/{name}")
            del self.known[instance_id]
            say("node deleted", node=name, instance=instance_id)
        now = time.monotonic()
        for instance_id, (group, instance) in alive.items():
            booted = self.boots.setdefault(instance_id, now + self.config["boot_delay_ms"] / 1000)
            if instance_id in self.known or now < booted:
                continue
            self.expect({201, 409}, "POST", "/api/v1/nodes", self.node(self.groups.get(group), instance))
            self.known[instance_id] = instance["node"]
            say("node created", node=instance["node"], instance=instance_id, group=group)

    def listed(self):
        nodes = self.expect({200}, "GET", "/api/v1/nodes")["items"]
        owned = [node for node in nodes if node["spec"].get("providerID", "").startswith("aws:///")]
        return {node["spec"]["providerID"].rsplit("/", 1)[1]: node["metadata"]["name"] for node in owned}

    def expect(self, statuses, method, path, body=None):
        status, reply = self.kubernetes.call(method, path, body)
        if status not in statuses:
            raise RuntimeError(f"{method} {path}: {status} {reply.get('message')}")
        return reply

    def node(self, group, instance):
        """A Node as the kubelet of an EKS node would register it; a group that a test made itself adds nothing."""
        name, zone = instance["node"], instance["zone"]
        labels = {"beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
                  "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                  "node.kubernetes.io/instance-type": instance["type"],
                  "topology.kubernetes.io/region": self.config["region"], "topology.kubernetes.io/zone": zone}
        capacity, allocatable = sizes(instance["type"])
        return {
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"},
                         "labels": labels | (group["labels"] if group else {})},
            "spec": {"providerID": f"aws:///{zone}/{instance['id']}", "taints": group["taints"] if group else []},
            "status": {"capacity": capacity, "allocatable": allocatable, "addresses": [
                {"type": "InternalIP", "address": instance["ip"]}, {"type": "InternalDNS", "address": name},
                {"type": "Hostname", "address": name}]}}


def sizes(instance_type):
    """Capacity and allocatable of a type: the difference is what EKS's AMI keeps for the system."""
    kind = INSTANCE_TYPES[instance_type]
    cpus, memory, network = kind["VCpuInfo"]["DefaultVCpus"], kind["MemoryInfo"]["SizeInMiB"], kind["NetworkInfo"]
    # One address of each interface is its own; two pods use the host's network.
    pods = network["MaximumNetworkInterfaces"] * (network["Ipv4AddressesPerInterface"] - 1) + 2
    # 6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest.
    kept_millicpu = sum((60, 10, 5, 5)[core] if core < 4 else 2.5 for core in range(cpus))
    kept_memory = 255 + 11 * pods + 100  # system, per pod, eviction threshold
    capacity = {"cpu": str(cpus), "memory": f"{memory}Mi", "pods": str(pods), "ephemeral-storage": "100Gi"}
    gpus = sum(gpu["Count"] for gpu in kind.get("GpuInfo", {}).get("Gpus", []))
    if gpus:
        capacity["nvidia.com/gpu"] = str(gpus)
    allocatable = capacity | {"cpu": f"{int(1000 * cpus - kept_millicpu)}m", "memory": f"{memory - kept_memory}Mi"}
    return capacity, allocatable


def main():
    with open(sys.argv[1]) as file:
        config = json.load(file)
    unknown = sorted({group["type"] for group in config["groups"]} - set(INSTANCE_TYPES))
    if unknown:
        sys.exit(f"unknown instance types: {', '.join(unknown)}")
    api = Api(config["log"], config["region"])
    server = make_server("127.0.0.1", config["port"], api, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    make_groups(config)
    api.ready = True
    say("ready", groups=[group["name"] for group in config["groups"]])
    threading.Thread(target=keep_time, args=[config["region"]], daemon=True).start()
    nodes = Nodes(config, Kubernetes(config))
    while True:
        try:
            nodes.follow()
            time.sleep(PASS_SECONDS)
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            say("pass failed", error=str(error))
            time.sleep(1)


if __name__ == "__main__":
    main()
