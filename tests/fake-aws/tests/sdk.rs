//! The fake over HTTP, as AWS's own SDK sees it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::operation::RequestId;
use aws_sdk_autoscaling::operation::set_desired_capacity::SetDesiredCapacityError;
use aws_sdk_autoscaling::types::{Filter, LaunchTemplateSpecification, ScalingActivityStatusCode, Tag};
use aws_smithy_http_client::tls;
use fake_aws::service::{Service, Timing};
use fake_aws::{Lab, Params};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const REGION: &str = "us-west-2";

/// A fake of its own for each test, with the launch template `t` of m5.xlarge.
struct Fake {
    lab: Arc<Lab>,
    aws: Client,
}

impl Fake {
    async fn start() -> Self {
        let mut service = Service::new(REGION, Timing::default(), 1);
        let template = [("LaunchTemplateName", "t"), ("LaunchTemplateData.InstanceType", "m5.xlarge")];
        service.call(Timestamp::now(), "CreateLaunchTemplate", &template.into_iter().collect::<Params>()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let lab = Arc::new(Lab::new(service, None));
        tokio::spawn(fake_aws::serve(listener, Arc::clone(&lab)));
        Self { lab, aws: client(&endpoint, REGION) }
    }

    /// A group of 0 to 10 in these zones.
    async fn create(&self, name: &str, zones: &[&str]) {
        let template = LaunchTemplateSpecification::builder().launch_template_name("t").build();
        let create = self.aws.create_auto_scaling_group().auto_scaling_group_name(name).min_size(0).max_size(10);
        let zones = zones.iter().map(|zone| format!("{REGION}{zone}")).collect();
        let tag = Tag::builder().key("team").value(name).propagate_at_launch(true).build();
        create.launch_template(template).set_availability_zones(Some(zones)).tags(tag).send().await.unwrap();
    }

    async fn set_desired(&self, name: &str, desired: i32) -> Result<(), SdkError<SetDesiredCapacityError>> {
        let call = self.aws.set_desired_capacity().auto_scaling_group_name(name).desired_capacity(desired);
        call.honor_cooldown(false).send().await.map(drop)
    }

    fn faults(&self, rules: Value) {
        self.lab.service().faults.set(serde_json::from_value(rules).unwrap()).unwrap();
    }

    fn desired(&self, name: &str) -> u32 {
        self.lab.service().groups().iter().find(|group| group.name == name).unwrap().desired
    }
}

fn client(endpoint: &str, region: &'static str) -> Client {
    let tls = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let config = aws_sdk_autoscaling::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new("lab", "lab", None, None, "lab"))
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https())
        .region(Region::new(region))
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

#[tokio::test]
async fn a_group_is_described_with_all_that_an_autoscaler_reads() {
    let fake = Fake::start().await;
    fake.create("g", &["a", "b"]).await;
    fake.set_desired("g", 3).await.unwrap();
    let told = fake.aws.describe_auto_scaling_groups().auto_scaling_group_names("g").send().await.unwrap();
    assert_eq!(told.request_id().unwrap().len(), 36);
    let group = &told.auto_scaling_groups()[0];
    assert_eq!((group.min_size(), group.max_size(), group.desired_capacity()), (Some(0), Some(10), Some(3)));
    assert_eq!(group.availability_zones(), ["us-west-2a", "us-west-2b"]);
    assert_eq!(group.launch_template().unwrap().launch_template_name(), Some("t"));
    assert_eq!((group.tags()[0].key(), group.tags()[0].value()), (Some("team"), Some("g")));
    assert!(group.created_time().is_some());
    let instance = &group.instances()[1];
    assert_eq!(instance.availability_zone(), Some("us-west-2b"));
    assert_eq!(instance.instance_type(), Some("m5.xlarge"));
    assert_eq!(instance.lifecycle_state().unwrap().as_str(), "InService");
    assert_eq!(instance.protected_from_scale_in(), Some(false));
    let id = instance.instance_id().unwrap();
    let told = fake.aws.describe_auto_scaling_instances().instance_ids(id).send().await.unwrap();
    assert_eq!(told.auto_scaling_instances()[0].auto_scaling_group_name(), Some("g"));
}

#[tokio::test]
async fn pages_and_filters_find_every_group_once() {
    let fake = Fake::start().await;
    for number in 0..7 {
        fake.create(&format!("g{number}"), &["a"]).await;
    }
    let mut groups = fake.aws.describe_auto_scaling_groups().into_paginator().page_size(3).items().send();
    let mut names = Vec::new();
    while let Some(group) = groups.next().await {
        names.push(group.unwrap().auto_scaling_group_name().unwrap().to_owned());
    }
    assert_eq!(names, ["g0", "g1", "g2", "g3", "g4", "g5", "g6"]);
    let filter = Filter::builder().name("tag:team").values("g2").values("g5").build();
    let told = fake.aws.describe_auto_scaling_groups().filters(filter).send().await.unwrap();
    assert_eq!(told.auto_scaling_groups().len(), 2);
    let refused = fake.aws.describe_auto_scaling_groups().next_token("x").send().await.unwrap_err();
    assert!(refused.as_service_error().unwrap().is_invalid_next_token());
}

#[tokio::test]
async fn refusals_reach_the_caller_as_aws_means_them() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    let error = fake.set_desired("g", 11).await.unwrap_err();
    assert_eq!(error.code(), Some("ValidationError"));
    assert_eq!(
        error.message(),
        Some("New SetDesiredCapacity value 11 is above max value 10 for the AutoScalingGroup.")
    );
    assert!(error.request_id().is_some());
    assert!(fake.set_desired("h", 1).await.unwrap_err().message().unwrap().contains("not found"));

    fake.faults(json!([{"action": "SetDesiredCapacity", "code": "Throttling", "times": 1}]));
    let error = fake.set_desired("g", 1).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Some("Throttling"), Some("Rate exceeded")));
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 400);
    fake.faults(json!([{"code": "ServiceUnavailable", "times": 1}]));
    assert_eq!(fake.set_desired("g", 1).await.unwrap_err().raw_response().unwrap().status().as_u16(), 503);
    fake.faults(json!([{"code": "ScalingActivityInProgress", "times": 1}]));
    assert!(fake.set_desired("g", 1).await.unwrap_err().into_service_error().is_scaling_activity_in_progress_fault());
    assert_eq!(fake.desired("g"), 0);
    fake.set_desired("g", 1).await.unwrap();
}

#[tokio::test]
async fn an_answer_can_be_lost_before_or_after_the_effect() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    fake.faults(json!([{"drop": true, "times": 1}, {"drop": true, "effect": true, "times": 1},
                       {"code": "InternalFailure", "effect": true, "times": 1}]));
    let lost = fake.set_desired("g", 1).await.unwrap_err();
    assert!(matches!(lost, SdkError::DispatchFailure(_)), "{lost:?}");
    assert_eq!(fake.desired("g"), 0);
    let lost = fake.set_desired("g", 1).await.unwrap_err();
    assert!(matches!(lost, SdkError::DispatchFailure(_)), "{lost:?}");
    assert_eq!(fake.desired("g"), 1);
    assert_eq!(fake.set_desired("g", 2).await.unwrap_err().code(), Some("InternalFailure"));
    assert_eq!(fake.desired("g"), 2);
}

#[tokio::test]
async fn a_read_can_be_stale() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    let desired = async || {
        let told = fake.aws.describe_auto_scaling_groups().auto_scaling_group_names("g").send().await.unwrap();
        told.auto_scaling_groups()[0].desired_capacity()
    };
    assert_eq!(desired().await, Some(0));
    fake.set_desired("g", 1).await.unwrap();
    fake.faults(json!([{"action": "DescribeAutoScalingGroups", "stale": true, "times": 1}]));
    assert_eq!(desired().await, Some(0));
    assert_eq!(desired().await, Some(1));
}

#[tokio::test]
async fn a_delay_holds_up_its_call_and_no_other() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    fake.faults(json!([{"action": "SetDesiredCapacity", "delay_ms": 300}]));
    let start = Instant::now();
    let quick = async {
        fake.aws.describe_auto_scaling_groups().send().await.unwrap();
        start.elapsed()
    };
    let (slow, quick) = tokio::join!(fake.set_desired("g", 1), quick);
    slow.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(quick < Duration::from_millis(300));
}

#[tokio::test]
async fn launches_that_fail_are_told_with_their_reason_and_tried_again() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    fake.faults(json!([{"action": "Launch", "code": "InsufficientInstanceCapacity", "times": 1}]));
    fake.set_desired("g", 1).await.unwrap();
    let activities = async || {
        let told = fake.aws.describe_scaling_activities().auto_scaling_group_name("g").send().await.unwrap();
        told.activities().to_vec()
    };
    let told = activities().await;
    assert_eq!(told[0].status_code(), Some(&ScalingActivityStatusCode::Failed));
    assert!(told[0].status_message().unwrap().starts_with("We currently do not have sufficient m5.xlarge capacity"));
    assert!(told[0].end_time().is_some());
    let deadline = Instant::now() + Duration::from_secs(30);
    while activities().await[0].status_code() != Some(&ScalingActivityStatusCode::Successful) {
        assert!(Instant::now() < deadline, "nobody asks, and yet the group tries again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_synchronous_launch_is_one_however_often_it_is_asked_for() {
    let fake = Fake::start().await;
    fake.create("g", &["a", "b"]).await;
    let launch = fake.aws.launch_instances().auto_scaling_group_name("g").client_token("one");
    let launch = launch.availability_zones("us-west-2b").requested_capacity(2);
    let first = launch.clone().send().await.unwrap();
    assert_eq!(first.instances()[0].instance_ids().len(), 2);
    assert_eq!(first.instances()[0].availability_zone(), Some("us-west-2b"));
    assert_eq!(first.errors(), []);
    assert_eq!(launch.clone().send().await.unwrap().instances(), first.instances());
    let other = launch.requested_capacity(3).send().await.unwrap_err().into_service_error();
    assert!(other.is_idempotent_parameter_mismatch_error());
    assert_eq!(fake.desired("g"), 2);
}

#[tokio::test]
async fn a_hook_holds_until_it_is_completed() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    fake.set_desired("g", 1).await.unwrap();
    let hook = fake.aws.put_lifecycle_hook().auto_scaling_group_name("g").lifecycle_hook_name("drain");
    hook.lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING").send().await.unwrap();
    let hooks = fake.aws.describe_lifecycle_hooks().auto_scaling_group_name("g").send().await.unwrap();
    assert_eq!(hooks.lifecycle_hooks()[0].heartbeat_timeout(), Some(3600));
    assert_eq!(hooks.lifecycle_hooks()[0].default_result(), Some("ABANDON"));
    let id = fake.lab.service().groups()[0].instances[0].id.clone();
    let terminate = fake.aws.terminate_instance_in_auto_scaling_group().instance_id(&id);
    let told = terminate.should_decrement_desired_capacity(true).send().await.unwrap();
    assert_eq!(told.activity().unwrap().status_code(), Some(&ScalingActivityStatusCode::MidLifecycleAction));
    assert_eq!(fake.lab.service().groups()[0].instances[0].state, "Terminating:Wait");
    let beat = fake.aws.record_lifecycle_action_heartbeat().auto_scaling_group_name("g").lifecycle_hook_name("drain");
    beat.instance_id(&id).send().await.unwrap();
    let complete = fake.aws.complete_lifecycle_action().auto_scaling_group_name("g").lifecycle_hook_name("drain");
    complete.lifecycle_action_result("CONTINUE").instance_id(&id).send().await.unwrap();
    assert!(fake.lab.service().groups()[0].instances.is_empty());
}

#[tokio::test]
async fn tags_protection_and_processes_are_taken() {
    let fake = Fake::start().await;
    fake.create("g", &["a"]).await;
    let tag = Tag::builder().resource_id("g").resource_type("auto-scaling-group").key("owner").value("me");
    fake.aws.create_or_update_tags().tags(tag.propagate_at_launch(false).build()).send().await.unwrap();
    let filter = Filter::builder().name("key").values("owner").build();
    let told = fake.aws.describe_tags().filters(filter).send().await.unwrap();
    assert_eq!(told.tags()[0].value(), Some("me"));

    fake.set_desired("g", 1).await.unwrap();
    let id = fake.lab.service().groups()[0].instances[0].id.clone();
    let protect = fake.aws.set_instance_protection().auto_scaling_group_name("g").instance_ids(id);
    protect.protected_from_scale_in(true).send().await.unwrap();
    fake.aws.suspend_processes().auto_scaling_group_name("g").scaling_processes("Launch").send().await.unwrap();
    fake.aws.update_auto_scaling_group().auto_scaling_group_name("g").desired_capacity(2).send().await.unwrap();
    assert_eq!(fake.lab.service().groups()[0].instances.len(), 1);
    fake.aws.resume_processes().auto_scaling_group_name("g").send().await.unwrap();
    assert_eq!(fake.lab.service().groups()[0].instances.len(), 2);
    fake.aws.delete_auto_scaling_group().auto_scaling_group_name("g").force_delete(true).send().await.unwrap();
}
