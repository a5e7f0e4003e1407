//! The service as its callers see it, with a clock of the test's own.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A service at a time that the test moves.
struct World {
    service: Service,
    now: Timestamp,
}

impl World {
    /// One group, `g`, of 0 to 10 m5.xlarge in these zones, and no instances.
    fn with(zones: &[&str]) -> Self {
        Self::timed(Timing::default(), zones)
    }

    fn timed(timing: Timing, zones: &[&str]) -> Self {
        let now = "2026-11-26T08:00:00.250Z".parse().unwrap();
        let mut world = Self { service: Service::new("us-west-2", timing, 1), now };
        world.ok(
            "CreateLaunchTemplate",
            &[("LaunchTemplateName", "t"), ("LaunchTemplateData.InstanceType", "m5.xlarge")],
        );
        let mut params: Vec<(String, String)> = [
            ("AutoScalingGroupName", "g"),
            ("MinSize", "0"),
            ("MaxSize", "10"),
            ("LaunchTemplate.LaunchTemplateName", "t"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        for (number, zone) in (1..).zip(zones) {
            params.push((format!("AvailabilityZones.member.{number}"), format!("us-west-2{zone}")));
        }
        let params: Params = params.into_iter().collect();
        world.service.call(now, "CreateAutoScalingGroup", &params).unwrap();
        world
    }

    fn call(&mut self, action: &str, params: &[(&str, &str)]) -> Result<Value, ApiError> {
        self.service.call(self.now, action, &params.iter().copied().collect())
    }

    fn ok(&mut self, action: &str, params: &[(&str, &str)]) -> Value {
        self.call(action, params).unwrap_or_else(|error| panic!("{action}: {error}"))
    }

    fn refused(&mut self, action: &str, params: &[(&str, &str)]) -> String {
        let error = self.call(action, params).expect_err("it should be refused");
        format!("{}: {}", error.code, error.message)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.service.advance(self.now);
    }

    fn set_desired(&mut self, desired: &str) {
        self.ok("SetDesiredCapacity", &[("AutoScalingGroupName", "g"), ("DesiredCapacity", desired)]);
    }

    fn terminate(&mut self, id: &str, decrement: &str) -> Value {
        let params = [("InstanceId", id), ("ShouldDecrementDesiredCapacity", decrement)];
        self.ok("TerminateInstanceInAutoScalingGroup", &params)["Activity"].clone()
    }

    fn faults(&mut self, rules: Value) {
        self.service.faults.set(serde_json::from_value(rules).unwrap()).unwrap();
    }

    fn group(&self) -> GroupView {
        self.service.groups().remove(0)
    }

    /// `InService Pending`, for instance.
    fn states(&self) -> String {
        self.group().instances.iter().map(|instance| instance.state).collect::<Vec<_>>().join(" ")
    }

    /// The letters of the zones of all instances.
    fn zones(&self) -> String {
        self.group().instances.iter().filter_map(|instance| instance.zone.chars().next_back()).collect()
    }

    fn id(&self, index: usize) -> String {
        self.group().instances[index].id.clone()
    }

    /// Newest first.
    fn activities(&mut self) -> Vec<Value> {
        let told = self.ok("DescribeScalingActivities", &[("AutoScalingGroupName", "g")]);
        told["Activities"].as_array().unwrap().clone()
    }

    fn put_hook(&mut self, name: &str, transition: &str, default: &str) {
        let transition = format!("autoscaling:EC2_INSTANCE_{transition}");
        let params = [
            ("AutoScalingGroupName", "g"),
            ("LifecycleHookName", name),
            ("LifecycleTransition", &transition),
            ("HeartbeatTimeout", "30"),
            ("DefaultResult", default),
        ];
        self.ok("PutLifecycleHook", &params);
    }

    fn complete(&mut self, hook: &str, id: &str, result: &str) -> Result<Value, ApiError> {
        let params = [
            ("AutoScalingGroupName", "g"),
            ("LifecycleHookName", hook),
            ("LifecycleActionResult", result),
            ("InstanceId", id),
        ];
        self.call("CompleteLifecycleAction", &params)
    }
}

#[test]
fn capacity_is_spread_over_the_zones() {
    let mut world = World::with(&["a", "b", "c"]);
    world.set_desired("4");
    assert_eq!(world.zones(), "abca");
    let second = world.id(1);
    world.terminate(&second, "true");
    world.set_desired("4");
    assert_eq!(world.zones(), "acab");
}

#[test]
fn everything_takes_its_time() {
    let timing = Timing { react_ms: 2000, launch_ms: 30_000, terminate_ms: 10_000, retry_ms: 5000 };
    let mut world = World::timed(timing, &["a"]);
    world.set_desired("1");
    assert_eq!(world.states(), "");
    world.pass(2);
    assert_eq!(world.states(), "Pending");
    assert_eq!(world.activities()[0]["StatusCode"], "PreInService");
    world.pass(29);
    assert_eq!(world.states(), "Pending");
    world.pass(1);
    assert_eq!(world.states(), "InService");
    assert_eq!(world.activities()[0]["StatusCode"], "Successful");
    assert_eq!(world.activities()[0]["EndTime"], "2026-11-26T08:00:32Z");

    let id = world.id(0);
    assert_eq!(world.terminate(&id, "true")["StatusCode"], "InProgress");
    assert_eq!(world.states(), "Terminating");
    assert_eq!(world.service.next_wakeup(), Some(world.now + Duration::from_secs(2)));
    world.pass(10);
    assert_eq!(world.states(), "");
    assert_eq!(world.activities()[0]["StatusCode"], "Successful");
    assert_eq!(world.service.next_wakeup(), None);
}

#[test]
fn bounds_are_refused_in_the_words_of_aws() {
    let mut world = World::with(&["a"]);
    world.ok("UpdateAutoScalingGroup", &[("AutoScalingGroupName", "g"), ("MinSize", "1"), ("MaxSize", "2")]);
    let mut set =
        |desired| world.refused("SetDesiredCapacity", &[("AutoScalingGroupName", "g"), ("DesiredCapacity", desired)]);
    let above = "ValidationError: New SetDesiredCapacity value 3 is above max value 2 for the AutoScalingGroup.";
    let below = "ValidationError: New SetDesiredCapacity value 0 is below min value 1 for the AutoScalingGroup.";
    assert_eq!((set("3").as_str(), set("0").as_str()), (above, below));

    let last = world.id(0);
    let terminate = [("InstanceId", last.as_str()), ("ShouldDecrementDesiredCapacity", "true")];
    let refused = world.refused("TerminateInstanceInAutoScalingGroup", &terminate);
    assert!(refused.starts_with("ValidationError: Currently, desiredSize equals minSize (1). "), "{refused}");
    let unknown = [("InstanceId", "i-1"), ("ShouldDecrementDesiredCapacity", "true")];
    let refused = world.refused("TerminateInstanceInAutoScalingGroup", &unknown);
    assert_eq!(refused, "ValidationError: Instance Id not found - No managed instance found for instance ID: i-1");
    let refused = world.refused("SetDesiredCapacity", &[("AutoScalingGroupName", "h"), ("DesiredCapacity", "1")]);
    assert_eq!(refused, "ValidationError: AutoScalingGroup name not found - AutoScalingGroup 'h' not found");

    let mut update = |params: &[(&str, &str)]| {
        let params = [&[("AutoScalingGroupName", "g")], params].concat();
        world.refused("UpdateAutoScalingGroup", &params)
    };
    let crossed = "ValidationError: Max bound, 2, must be greater than or equal to min bound, 3";
    let outside = "ValidationError: Desired capacity:5 must be between the specified min size:1 and max size:4";
    assert_eq!(update(&[("MinSize", "3")]), crossed);
    assert_eq!(update(&[("MaxSize", "4"), ("DesiredCapacity", "5")]), outside);
}

#[test]
fn a_moved_bound_takes_the_desired_capacity_along() {
    let mut world = World::with(&["a"]);
    world.ok("UpdateAutoScalingGroup", &[("AutoScalingGroupName", "g"), ("MinSize", "3")]);
    assert_eq!((world.group().desired, world.states().as_str()), (3, "InService InService InService"));
    world.ok("UpdateAutoScalingGroup", &[("AutoScalingGroupName", "g"), ("MinSize", "0"), ("MaxSize", "1")]);
    assert_eq!((world.group().desired, world.states().as_str()), (1, "InService"));
}

#[test]
fn a_launch_without_capacity_is_told_and_tried_again() {
    let mut world = World::with(&["a"]);
    world.faults(json!([{"action": "Launch", "code": "InsufficientInstanceCapacity"}]));
    world.set_desired("1");
    let told = world.activities().remove(0);
    assert_eq!((told["StatusCode"].as_str(), told["Progress"].as_u64()), (Some("Failed"), Some(100)));
    let message = "We currently do not have sufficient m5.xlarge capacity in the Availability Zone you requested \
                   (us-west-2a). Our system will be working on provisioning additional capacity. You can currently get \
                   m5.xlarge capacity by not specifying an Availability Zone in your request. Launching EC2 instance failed.";
    assert_eq!(told["StatusMessage"], message);
    assert_eq!(told["Description"], format!("Launching a new EC2 instance.  Status Reason: {message}"));
    let cause = "At 2026-11-26T08:00:00Z a user request explicitly set group desired capacity changing the desired \
                 capacity from 0 to 1.  At 2026-11-26T08:00:00Z an instance was started in response to a difference \
                 between desired and actual capacity, increasing the capacity from 0 to 1.";
    assert_eq!(told["Cause"], cause);
    let details: Value = serde_json::from_str(told["Details"].as_str().unwrap()).unwrap();
    assert_eq!(details, json!({"Subnet ID": "subnet-0fa4e00000000000a", "Availability Zone": "us-west-2a"}));

    world.pass(1);
    assert_eq!((world.activities().len(), world.states().as_str()), (2, ""));
    world.faults(json!([]));
    world.pass(1);
    assert_eq!(world.states(), "InService");
    assert_eq!(world.service.next_wakeup(), None);
}

#[test]
fn a_zone_without_capacity_is_left_for_the_next() {
    let mut world = World::with(&["a", "b"]);
    world.faults(json!([{"action": "Launch", "zone": "us-west-2a", "code": "InsufficientInstanceCapacity"}]));
    world.set_desired("2");
    assert_eq!(world.zones(), "bb");
    let told: Vec<_> = world.activities().iter().map(|activity| activity["StatusCode"].clone()).collect();
    assert_eq!(told, ["Successful", "Failed", "Successful", "Failed"]);
    let message = world.activities()[1]["StatusMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("in your request or choosing us-west-2b. Launching"), "{message}");
}

#[test]
fn quotas_and_templates_fail_in_their_own_words() {
    let mut world = World::with(&["a"]);
    let mut message = |code: &str| {
        world.faults(json!([{"action": "Launch", "code": code}]));
        world.set_desired("1");
        world.pass(1);
        world.activities()[0]["StatusMessage"].as_str().unwrap().to_owned()
    };
    assert!(
        message("VcpuLimitExceeded").starts_with("You have requested more vCPU capacity than your current vCPU limit")
    );
    assert_eq!(
        message("MaxSpotInstanceCountExceeded"),
        "Max spot instance count exceeded. Launching EC2 instance failed."
    );
    assert!(message("InvalidAMIID.NotFound").contains("does not exist. Launching EC2 instance failed."));
    assert!(
        message("InvalidLaunchTemplateId.NotFound").starts_with("The specified launch template, with template ID lt-")
    );
}

#[test]
fn termination_by_id_takes_that_one_and_replaces_it_unless_told_otherwise() {
    let mut world = World::with(&["a"]);
    world.set_desired("2");
    let first = world.id(0);
    let told = world.terminate(&first, "false");
    assert_eq!(
        told["Cause"],
        "At 2026-11-26T08:00:00Z instance ".to_owned()
            + &first
            + " was taken out of service in response to a user request."
    );
    assert_eq!((world.group().desired, world.group().instances.len()), (2, 2));
    assert!(world.group().instances.iter().all(|instance| instance.id != first));
    let second = world.id(0);
    let told = world.terminate(&second, "true");
    assert!(told["Cause"].as_str().unwrap().ends_with(", shrinking the capacity from 2 to 1."), "{told}");
    assert_eq!((world.group().desired, world.group().instances.len()), (1, 1));
}

#[test]
fn scale_in_spares_the_protected() {
    let mut world = World::with(&["a"]);
    world.set_desired("2");
    let oldest = world.id(0);
    let protect =
        [("AutoScalingGroupName", "g"), ("InstanceIds.member.1", oldest.as_str()), ("ProtectedFromScaleIn", "true")];
    world.ok("SetInstanceProtection", &protect);
    world.set_desired("1");
    assert_eq!(world.id(0), oldest);
    let cause = world.activities()[0]["Cause"].as_str().unwrap().to_owned();
    assert!(
        cause.contains("shrinking the capacity from 2 to 1.  At ") && cause.ends_with(" was selected for termination.")
    );
    world.set_desired("0");
    assert_eq!(world.states(), "InService", "all that is left is protected");
    world.terminate(&oldest, "false");
    assert_eq!(world.states(), "", "a call that names it asks for no protection");
}

#[test]
fn a_launch_hook_holds_until_it_is_completed() {
    let mut world = World::with(&["a"]);
    world.put_hook("warm", "LAUNCHING", "ABANDON");
    world.set_desired("1");
    assert_eq!(world.states(), "Pending:Wait");
    assert_eq!(world.activities()[0]["StatusCode"], "MidLifecycleAction");
    let id = world.id(0);
    world.complete("warm", &id, "CONTINUE").unwrap();
    assert_eq!(world.states(), "InService");
    assert_eq!(world.activities()[0]["StatusCode"], "Successful");
}

#[test]
fn a_launch_hook_that_is_not_answered_gives_the_instance_up() {
    let mut world = World::with(&["a"]);
    world.put_hook("warm", "LAUNCHING", "ABANDON");
    world.set_desired("1");
    let first = world.id(0);
    world.pass(30);
    assert_ne!(world.id(0), first, "another was launched in its place");
    let told = world.activities();
    let launch = told.iter().find(|activity| activity["StatusCode"] == "Cancelled").unwrap();
    let message = launch["StatusMessage"].as_str().unwrap();
    assert!(message.starts_with("Instance failed to complete user's Lifecycle Action: Lifecycle Action with token "));
    assert!(message.ends_with(" was abandoned: Heartbeat Timeout"), "{message}");

    world.put_hook("warm", "LAUNCHING", "CONTINUE");
    world.pass(30);
    assert_eq!(world.states(), "InService", "now the default is to go on");
}

#[test]
fn a_termination_hook_holds_as_long_as_its_heart_beats() {
    let mut world = World::with(&["a"]);
    world.set_desired("1");
    world.put_hook("drain", "TERMINATING", "CONTINUE");
    let id = world.id(0);
    assert_eq!(world.terminate(&id, "true")["StatusCode"], "MidLifecycleAction");
    assert_eq!((world.group().desired, world.states().as_str()), (0, "Terminating:Wait"));
    world.terminate(&id, "true");
    assert_eq!(world.group().desired, 0, "a second call changes nothing");
    let beat = [("AutoScalingGroupName", "g"), ("LifecycleHookName", "drain"), ("InstanceId", id.as_str())];
    for _ in 0..110 {
        world.pass(29);
        if world.states().is_empty() {
            break;
        }
        world.ok("RecordLifecycleActionHeartbeat", &beat);
    }
    // A hundred heartbeats of 30 s are the most, however many there are.
    assert_eq!(world.states(), "");
    assert_eq!(world.now.duration_since("2026-11-26T08:00:00.25Z".parse().unwrap()).as_secs() / 60, 50);
    let refused = world.complete("drain", &id, "CONTINUE").unwrap_err();
    assert_eq!(refused.message, format!("No active Lifecycle Action found with instance ID {id}"));
}

#[test]
fn all_hooks_must_let_go_but_one_can_give_up() {
    let mut world = World::with(&["a"]);
    world.set_desired("2");
    world.put_hook("drain", "TERMINATING", "CONTINUE");
    world.put_hook("logs", "TERMINATING", "CONTINUE");
    let (first, second) = (world.id(0), world.id(1));
    world.terminate(&first, "true");
    world.terminate(&second, "true");
    world.complete("drain", &first, "CONTINUE").unwrap();
    assert_eq!(world.states(), "Terminating:Wait Terminating:Wait");
    world.complete("logs", &first, "CONTINUE").unwrap();
    assert_eq!(world.states(), "Terminating:Wait");
    world.complete("drain", &second, "ABANDON").unwrap();
    assert_eq!(world.states(), "");
}

#[test]
fn a_synchronous_launch_says_what_it_got() {
    let mut world = World::with(&["a", "b"]);
    let launch = |token: &'static str, more: &[(&'static str, &'static str)]| {
        let own = [("AutoScalingGroupName", "g"), ("RequestedCapacity", "3"), ("ClientToken", token)];
        [&own, more].concat()
    };
    let refused = world.refused("LaunchInstances", &launch("one", &[]));
    assert!(
        refused.starts_with("ValidationError: Either AvailabilityZones or SubnetIds must be specified"),
        "{refused}"
    );
    world.faults(json!([{"action": "Launch", "code": "InsufficientInstanceCapacity", "times": 2}]));
    let in_b = [("AvailabilityZones.member.1", "us-west-2b")];
    let answer = world.ok("LaunchInstances", &launch("one", &in_b));
    assert_eq!(answer["Instances"][0]["InstanceIds"], json!([world.id(0)]));
    assert_eq!(answer["Instances"][0]["SubnetId"], "subnet-0fa4e00000000000b");
    assert_eq!(answer["Errors"].as_array().unwrap().len(), 1, "one for each kind");
    assert_eq!(answer["Errors"][0]["ErrorCode"], "InsufficientInstanceCapacity");
    assert_eq!(answer["Errors"][0]["AvailabilityZoneId"], "usw2-az2");
    assert_eq!((world.group().desired, world.zones().as_str()), (1, "b"));

    assert_eq!(world.ok("LaunchInstances", &launch("one", &in_b)), answer, "the same token launches nothing more");
    let other = world.refused("LaunchInstances", &launch("one", &[("AvailabilityZones.member.1", "us-west-2a")]));
    assert!(other.starts_with("IdempotentParameterMismatch"), "{other}");

    world.faults(json!([{"action": "Launch", "zone": "us-west-2b", "code": "InsufficientInstanceCapacity"}]));
    let retry =
        [("SubnetIds.member.1", "subnet-0fa4e00000000000b"), ("RetryStrategy", "retry-with-group-configuration")];
    let answer = world.ok("LaunchInstances", &launch("two", &retry));
    assert_eq!((answer["Instances"].as_array().unwrap().len(), world.group().desired), (0, 4));
    world.pass(1);
    assert_eq!(world.zones(), "baaa", "the group tried where it has capacity");
    let refused = world.refused(
        "LaunchInstances",
        &[
            ("AutoScalingGroupName", "g"),
            ("RequestedCapacity", "7"),
            ("ClientToken", "three"),
            ("AvailabilityZones.member.1", "us-west-2a"),
        ],
    );
    assert!(refused.contains("above max value 10"), "{refused}");
}

#[test]
fn a_policy_tries_its_types_in_order_and_keeps_its_share_of_spot() {
    let mut world = World::with(&["a"]);
    let policy = "MixedInstancesPolicy.LaunchTemplate";
    let params = [
        ("AutoScalingGroupName", "mixed".to_owned()),
        ("MinSize", "0".to_owned()),
        ("MaxSize", "10".to_owned()),
        ("AvailabilityZones.member.1", "us-west-2a".to_owned()),
    ];
    let mut params: Vec<(String, String)> = params.map(|(name, value)| (name.to_owned(), value)).to_vec();
    params.push((format!("{policy}.LaunchTemplateSpecification.LaunchTemplateName"), "t".into()));
    params.push((format!("{policy}.Overrides.member.1.InstanceType"), "m5.large".into()));
    params.push((format!("{policy}.Overrides.member.2.InstanceType"), "m6i.large".into()));
    params.push(("MixedInstancesPolicy.InstancesDistribution.OnDemandBaseCapacity".into(), "1".into()));
    params.push(("MixedInstancesPolicy.InstancesDistribution.OnDemandPercentageAboveBaseCapacity".into(), "50".into()));
    world.service.call(world.now, "CreateAutoScalingGroup", &params.into_iter().collect()).unwrap();
    world.faults(
        json!([{"action": "Launch", "type": "m5.large", "market": "Spot", "code": "InsufficientInstanceCapacity"}]),
    );
    world.ok("SetDesiredCapacity", &[("AutoScalingGroupName", "mixed"), ("DesiredCapacity", "5")]);
    let mixed = world.service.groups().remove(1);
    let kinds: Vec<_> =
        mixed.instances.iter().map(|instance| format!("{} {}", instance.instance_type, instance.market)).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "m5.large OnDemand").count(), 3);
    assert_eq!(kinds.iter().filter(|kind| *kind == "m6i.large Spot").count(), 2);
    let told = world.ok("DescribeScalingActivities", &[("AutoScalingGroupName", "mixed")]);
    let failed =
        told["Activities"].as_array().unwrap().iter().find(|activity| activity["StatusCode"] == "Failed").unwrap();
    let message = "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available \
                   that matches your request. Launching EC2 instance failed.";
    assert_eq!(failed["StatusMessage"], message);
    let told = world.ok("DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", "mixed")]);
    let policy = &told["AutoScalingGroups"][0]["MixedInstancesPolicy"];
    assert_eq!(policy["LaunchTemplate"]["Overrides"][1]["InstanceType"], "m6i.large");
    assert_eq!(policy["InstancesDistribution"]["OnDemandAllocationStrategy"], "prioritized");
    assert_eq!(told["AutoScalingGroups"][0]["LaunchTemplate"], Value::Null);
}

#[test]
fn groups_are_found_by_name_and_tag_and_told_in_pages() {
    let mut world = World::with(&["a"]);
    let create = |name: &'static str| {
        [
            ("AutoScalingGroupName", name),
            ("MinSize", "0"),
            ("MaxSize", "1"),
            ("AvailabilityZones.member.1", "us-west-2a"),
            ("LaunchTemplate.LaunchTemplateName", "t"),
            ("Tags.member.1.Key", "team"),
            ("Tags.member.1.Value", name),
        ]
    };
    world.ok("CreateAutoScalingGroup", &create("red"));
    world.ok("CreateAutoScalingGroup", &create("blue"));
    let mut names = |params: &[(&str, &str)]| {
        let told = world.ok("DescribeAutoScalingGroups", params);
        let names =
            told["AutoScalingGroups"].as_array().unwrap().iter().map(|group| group["AutoScalingGroupName"].clone());
        let names = names.map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        (names, told["NextToken"].as_str().map(str::to_owned))
    };
    assert_eq!(names(&[]), ("blue g red".to_owned(), None));
    assert_eq!(
        names(&[("AutoScalingGroupNames.member.1", "red"), ("AutoScalingGroupNames.member.2", "none")]).0,
        "red"
    );
    assert_eq!(
        names(&[("Filters.member.1.Name", "tag-key"), ("Filters.member.1.Values.member.1", "team")]).0,
        "blue red"
    );
    assert_eq!(names(&[("Filters.member.1.Name", "tag:team"), ("Filters.member.1.Values.member.1", "blue")]).0, "blue");
    let (first, token) = names(&[("MaxRecords", "2")]);
    assert_eq!(first, "blue g");
    assert_eq!(names(&[("MaxRecords", "2"), ("NextToken", &token.unwrap())]), ("red".to_owned(), None));

    assert!(world.refused("DescribeAutoScalingGroups", &[("NextToken", "x")]).starts_with("InvalidNextToken"));
    let refused = world.refused("DescribeAutoScalingGroups", &[("MaxRecords", "101")]);
    let expected = "ValidationError: 1 validation error detected: Value '101' at 'maxRecords' failed to satisfy constraint: \
                    Member must have value less than or equal to 100";
    assert_eq!(refused, expected);
    let refused = world.refused("DescribeAutoScalingGroups", &[("Filters.member.1.Name", "colour")]);
    assert!(refused.contains("Filter type colour is not correct"), "{refused}");
}

#[test]
fn activities_come_newest_first_and_in_pages() {
    let mut world = World::with(&["a"]);
    world.set_desired("1");
    world.pass(10);
    world.set_desired("3");
    let page = |world: &mut World, more: &[(&str, &str)]| {
        let told = world
            .ok("DescribeScalingActivities", &[&[("AutoScalingGroupName", "g"), ("MaxRecords", "2")], more].concat());
        let starts: Vec<_> =
            told["Activities"].as_array().unwrap().iter().map(|one| one["StartTime"].clone()).collect();
        (starts, told["NextToken"].as_str().map(str::to_owned))
    };
    let (starts, token) = page(&mut world, &[]);
    assert_eq!(starts, ["2026-11-26T08:00:10.250Z", "2026-11-26T08:00:10.250Z"]);
    world.set_desired("4");
    let (rest, none) = page(&mut world, &[("NextToken", &token.unwrap())]);
    assert_eq!((rest, none), (vec![json!("2026-11-26T08:00:00.250Z")], None), "what came meanwhile moves nothing");
    let since = [
        ("Filters.member.1.Name", "StartTimeLowerBound"),
        ("Filters.member.1.Values.member.1", "2026-11-26T08:00:05Z"),
    ];
    let told = world.ok("DescribeScalingActivities", &since);
    assert_eq!(told["Activities"].as_array().unwrap().len(), 3);
}

#[test]
fn a_suspended_process_does_nothing_until_it_is_resumed() {
    let mut world = World::with(&["a"]);
    let launch = [("AutoScalingGroupName", "g"), ("ScalingProcesses.member.1", "Launch")];
    world.ok("SuspendProcesses", &launch);
    world.set_desired("1");
    world.pass(60);
    assert_eq!(world.states(), "");
    let told = world.ok("DescribeAutoScalingGroups", &[]);
    assert_eq!(told["AutoScalingGroups"][0]["SuspendedProcesses"][0]["ProcessName"], "Launch");
    world.ok("ResumeProcesses", &launch);
    assert_eq!(world.states(), "InService");
}

#[test]
fn tags_are_set_told_and_removed() {
    let mut world = World::with(&["a"]);
    let tag = [
        ("Tags.member.1.ResourceId", "g"),
        ("Tags.member.1.ResourceType", "auto-scaling-group"),
        ("Tags.member.1.Key", "team"),
        ("Tags.member.1.Value", "red"),
        ("Tags.member.1.PropagateAtLaunch", "true"),
    ];
    world.ok("CreateOrUpdateTags", &tag);
    let filter = [("Filters.member.1.Name", "key"), ("Filters.member.1.Values.member.1", "team")];
    assert_eq!(world.ok("DescribeTags", &filter)["Tags"][0]["PropagateAtLaunch"], true);
    world.ok("DeleteTags", &tag[..3].iter().chain(&tag[3..4]).copied().collect::<Vec<_>>());
    assert_eq!(world.ok("DescribeTags", &filter)["Tags"], json!([]));
}

#[test]
fn an_instance_that_is_taken_away_is_replaced() {
    let mut world = World::with(&["a"]);
    world.set_desired("1");
    let id = world.id(0);
    assert!(world.service.lose(world.now, &id));
    assert_ne!(world.id(0), id);
    let cause = world.activities()[1]["Cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("in response to an EC2 health check"), "{cause}");
    assert!(!world.service.lose(world.now, &id));
}

#[test]
fn a_group_with_instances_is_deleted_only_by_force() {
    let mut world = World::with(&["a"]);
    world.set_desired("1");
    let refused = world.refused("DeleteAutoScalingGroup", &[("AutoScalingGroupName", "g")]);
    assert!(refused.starts_with("ResourceInUse"), "{refused}");
    world.ok("DeleteAutoScalingGroup", &[("AutoScalingGroupName", "g"), ("ForceDelete", "true")]);
    assert!(world.service.groups().is_empty());
    assert_eq!(world.ok("DescribeScalingActivities", &[])["Activities"], json!([]));
    let deleted = [("AutoScalingGroupName", "g"), ("IncludeDeletedGroups", "true")];
    assert_eq!(world.ok("DescribeScalingActivities", &deleted)["Activities"].as_array().unwrap().len(), 1);
}

#[test]
fn addresses_are_given_again_only_when_they_are_free() {
    let mut world = World::with(&["a"]);
    world.set_desired("2");
    let kept = world.id(1);
    for _ in 0..5000 {
        let first = world.group().instances.iter().find(|instance| instance.id != kept).unwrap().id.clone();
        world.terminate(&first, "false");
    }
    let group = world.group();
    assert_ne!(group.instances[0].ip, group.instances[1].ip);
}

#[test]
fn what_the_fake_does_not_play_is_refused() {
    let refused = World::with(&["a"]).refused("PutScalingPolicy", &[]);
    assert!(refused.starts_with("InvalidAction: Could not find operation PutScalingPolicy"), "{refused}");
}

#[derive(Clone, Copy, Debug)]
enum Chance {
    SetDesired(u32),
    Terminate(usize, bool),
    Lose(usize),
    Complete(usize, bool),
    Protect(usize, bool),
    Hook(bool, bool),
    ShortOfCapacity(Option<usize>, u32),
    Suspend(bool),
    Pass(u64),
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        (0..12_u32).prop_map(Chance::SetDesired),
        (0..10_usize, any::<bool>()).prop_map(|(index, decrement)| Chance::Terminate(index, decrement)),
        (0..10_usize).prop_map(Chance::Lose),
        (0..10_usize, any::<bool>()).prop_map(|(index, abandon)| Chance::Complete(index, abandon)),
        (0..10_usize, any::<bool>()).prop_map(|(index, protected)| Chance::Protect(index, protected)),
        any::<(bool, bool)>().prop_map(|(launching, abandon)| Chance::Hook(launching, abandon)),
        (proptest::option::of(0..2_usize), 1..5_u32).prop_map(|(zone, times)| Chance::ShortOfCapacity(zone, times)),
        any::<bool>().prop_map(Chance::Suspend),
        (0..90_u64).prop_map(Chance::Pass),
    ]
}

impl World {
    /// What may be refused, and changes nothing then.
    fn take(&mut self, chance: Chance) {
        let ids: Vec<String> = self.group().instances.into_iter().map(|instance| instance.id).collect();
        let text = |flag: bool| if flag { "true" } else { "false" };
        match chance {
            Chance::SetDesired(desired) => {
                let params = [("AutoScalingGroupName", "g"), ("DesiredCapacity", &desired.to_string())];
                assert_eq!(self.call("SetDesiredCapacity", &params).is_ok(), desired <= 10);
            }
            Chance::Terminate(index, decrement) => {
                let Some(id) = ids.get(index) else { return };
                let params = [("InstanceId", id.as_str()), ("ShouldDecrementDesiredCapacity", text(decrement))];
                let _below_min = self.call("TerminateInstanceInAutoScalingGroup", &params);
            }
            Chance::Lose(index) => assert!(ids.get(index).is_none_or(|id| self.service.lose(self.now, id))),
            Chance::Complete(index, abandon) => {
                let Some(id) = ids.get(index) else { return };
                let result = if abandon { "ABANDON" } else { "CONTINUE" };
                for hook in ["LAUNCHING", "TERMINATING"] {
                    let _not_held = self.complete(hook, id, result);
                }
            }
            Chance::Protect(index, protected) => {
                let Some(id) = ids.get(index) else { return };
                let params = [
                    ("AutoScalingGroupName", "g"),
                    ("InstanceIds.member.1", id.as_str()),
                    ("ProtectedFromScaleIn", text(protected)),
                ];
                self.ok("SetInstanceProtection", &params);
            }
            Chance::Hook(launching, abandon) => {
                let transition = if launching { "LAUNCHING" } else { "TERMINATING" };
                self.put_hook(transition, transition, if abandon { "ABANDON" } else { "CONTINUE" });
            }
            Chance::ShortOfCapacity(zone, times) => {
                let zone = zone.map(|index| ["us-west-2a", "us-west-2b"][index]);
                let code = "InsufficientInstanceCapacity";
                self.faults(json!([{"action": "Launch", "code": code, "zone": zone, "times": times}]));
            }
            Chance::Suspend(suspend) => {
                let action = if suspend { "SuspendProcesses" } else { "ResumeProcesses" };
                self.ok(action, &[("AutoScalingGroupName", "g")]);
            }
            Chance::Pass(seconds) => self.pass(seconds),
        }
    }

    /// What holds at any time.
    fn check(&mut self) {
        assert!(self.service.next_wakeup().is_none_or(|at| at > self.now), "a caller that waits for it would spin");
        let group = self.group();
        assert!(group.desired <= 10);
        let addresses: BTreeSet<_> = group.instances.iter().map(|instance| &instance.ip).collect();
        assert_eq!(addresses.len(), group.instances.len());
        let unfinished = self.service.activities.iter().filter(|activity| activity.state.is_under_way());
        let moving = group.instances.iter().filter(|instance| instance.state != "InService");
        assert_eq!(unfinished.count(), moving.count(), "an activity for each that comes or goes: {}", self.states());
    }
}

proptest! {
    /// Whatever happens: nothing is left due, activities and instances agree, and once all is calm the group has what
    /// was asked for and wants to be woken no more.
    #[test]
    fn the_group_comes_to_rest_at_what_was_asked_for(
        chances in proptest::collection::vec(chance(), 0..60),
        launch_ms in 0..60_000_u64,
        terminate_ms in 0..60_000_u64,
        react_ms in 0..10_000_u64,
    ) {
        let mut world = World::timed(Timing { react_ms, launch_ms, terminate_ms, retry_ms: 1000 }, &["a", "b"]);
        for chance in chances {
            world.take(chance);
            world.check();
        }
        world.faults(json!([]));
        world.take(Chance::Suspend(false));
        for id in world.group().instances.into_iter().map(|instance| instance.id) {
            let params =
                [("AutoScalingGroupName", "g"), ("InstanceIds.member.1", id.as_str()), ("ProtectedFromScaleIn", "false")];
            world.ok("SetInstanceProtection", &params);
        }
        for hook in ["LAUNCHING", "TERMINATING"] {
            let _there_was_none = world.call("DeleteLifecycleHook", &[("AutoScalingGroupName", "g"), ("LifecycleHookName", hook)]);
        }
        let desired = world.group().desired;
        world.set_desired(&desired.to_string());
        for _ in 0..100 {
            world.pass(3600);
            world.check();
        }
        prop_assert_eq!(world.service.next_wakeup(), None);
        prop_assert_eq!(world.group().instances.len() as u32, desired);
        prop_assert!(world.states().split(' ').all(|state| state.is_empty() || state == "InService"));
    }
}
