//! Our fake of AWS held against another, moto: the same calls by AWS's SDK to both, and the same answers, for what moto
//! has. It differs from AWS, as far as we know, in this, which is not compared here but tested in `tests/fake-aws`:
//!
//! - SetDesiredCapacity takes what is outside the bounds, and so does a termination with decrement below the minimum;
//!   calls that name an unknown group or instance answer 500.
//! - DescribeScalingActivities knows none; causes have no capacities; launches never fail.
//! - All instances of a group of several zones are in one, by chance.
//! - Hooks hold nothing; CompleteLifecycleAction, RecordLifecycleActionHeartbeat and LaunchInstances are missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{
    AutoScalingGroup, Filter, InstancesDistribution, LaunchTemplate, LaunchTemplateOverrides,
    LaunchTemplateSpecification, MixedInstancesPolicy, Tag,
};
use aws_smithy_http_client::tls;
use ebb_tests::{Program, binary, free_port, http, wait_until};
use serde_json::json;

const REGION: &str = "us-west-2";
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_moto_plays_too_is_answered_alike() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let ours = Server::ours(&folder).await;
    let theirs = Server::moto(&folder).await;
    let (ours, theirs) = (script(&ours).await, script(&theirs).await);
    let differ = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
    let differ: Vec<_> = differ.map(|(ours, theirs)| format!("ours: {ours}\nmoto: {theirs}")).collect();
    assert!(differ.is_empty(), "the fake AWS and moto differ:\n{}", differ.join("\n"));
    assert_eq!(ours.len(), theirs.len());
}

/// Calls, and what is the same about the answers of any server that plays AWS.
async fn script(server: &Server) -> Vec<String> {
    let aws = &server.aws;
    let mut told = Told { aws, lines: Vec::new() };
    for (template, instance_type) in [("small", "m5.large"), ("gpu", "g4dn.xlarge")] {
        server.create_launch_template(template, instance_type).await;
    }
    let create = |name: &str, template: &str| {
        let create = aws.create_auto_scaling_group().auto_scaling_group_name(name).min_size(0).max_size(5);
        create.launch_template(specification(template)).availability_zones("us-west-2a").tags(tag(name, "team", "red"))
    };
    told.outcome("create cpu", create("cpu", "small").desired_capacity(2).send().await);
    told.outcome("create gpu", create("gpu", "gpu").tags(tag("gpu", "kind", "gpu")).send().await);
    told.outcome("create spread", create("spread", "small").availability_zones("us-west-2b").send().await);
    let distribution = InstancesDistribution::builder()
        .on_demand_base_capacity(1)
        .on_demand_percentage_above_base_capacity(50)
        .on_demand_allocation_strategy("prioritized")
        .spot_allocation_strategy("capacity-optimized");
    let overrides = ["m5.large", "m6i.large"].map(|one| LaunchTemplateOverrides::builder().instance_type(one).build());
    let template = LaunchTemplate::builder().launch_template_specification(specification("small"));
    let policy = MixedInstancesPolicy::builder()
        .instances_distribution(distribution.build())
        .launch_template(template.set_overrides(Some(overrides.to_vec())).build());
    let mixed = aws.create_auto_scaling_group().auto_scaling_group_name("mixed").min_size(0).max_size(5);
    let mixed = mixed.mixed_instances_policy(policy.build()).availability_zones("us-west-2a");
    told.outcome("create mixed", mixed.send().await);
    told.groups("all").await;

    for desired in [4, 1, 3] {
        let set = aws.set_desired_capacity().auto_scaling_group_name("cpu").desired_capacity(desired);
        told.outcome(&format!("set cpu to {desired}"), set.send().await);
        told.groups("after that").await;
    }
    let ids = told.instances("cpu").await;
    for (id, decrement) in [(&ids[0], true), (&ids[1], false)] {
        let terminate = aws.terminate_instance_in_auto_scaling_group().instance_id(id);
        let activity = terminate.should_decrement_desired_capacity(decrement).send().await.unwrap();
        let activity = activity.activity().unwrap();
        let description = activity.description().unwrap_or_default().replace(id, "ID");
        told.line(&format!("terminate, decrement {decrement}: {description} {:?}", activity.status_code()));
        told.groups("after that").await;
        let gone = !told.instances("cpu").await.contains(id);
        told.line(&format!("it is gone: {gone}"));
    }

    let update = |name| aws.update_auto_scaling_group().auto_scaling_group_name(name);
    told.outcome("raise gpu's minimum", update("gpu").min_size(2).send().await);
    told.groups("which took the desired capacity along").await;
    told.outcome("lower gpu's maximum", update("gpu").min_size(0).max_size(1).send().await);
    told.groups("which did so, too").await;
    told.outcome("set cpu's desired", update("cpu").desired_capacity(4).send().await);
    told.groups("after that").await;

    let ids = told.instances("cpu").await;
    let protect = aws.set_instance_protection().auto_scaling_group_name("cpu").protected_from_scale_in(true);
    told.outcome("protect", protect.instance_ids(&ids[0]).instance_ids(&ids[2]).send().await);
    let set = aws.set_desired_capacity().auto_scaling_group_name("cpu").desired_capacity(2);
    told.outcome("set cpu to 2", set.send().await);
    // In any order: moto keeps sets.
    let left: BTreeSet<_> = told.instances("cpu").await.into_iter().collect();
    told.line(&format!("the protected are left: {}", left == BTreeSet::from([ids[0].clone(), ids[2].clone()])));
    told.groups("after that").await;
    let found = aws.describe_auto_scaling_instances().instance_ids(&ids[0]).instance_ids("i-00000000").send().await;
    for one in found.unwrap().auto_scaling_instances() {
        let (name, state) = (one.auto_scaling_group_name(), one.lifecycle_state());
        told.line(&format!("instance of {name:?}: {state:?} {:?}", one.protected_from_scale_in()));
    }

    let suspend = aws.suspend_processes().auto_scaling_group_name("cpu").scaling_processes("AZRebalance");
    told.outcome("suspend", suspend.send().await);
    told.groups("suspended").await;
    let resume = aws.resume_processes().auto_scaling_group_name("cpu").scaling_processes("AZRebalance");
    told.outcome("resume", resume.send().await);
    told.groups("resumed").await;

    told.outcome("tag", aws.create_or_update_tags().tags(tag("cpu", "team", "blue")).send().await);
    told.outcome("tag", aws.create_or_update_tags().tags(tag("cpu", "owner", "me & you <us>")).send().await);
    told.tags().await;
    told.outcome("untag", aws.delete_tags().tags(tag("cpu", "owner", "me & you <us>")).send().await);
    told.tags().await;
    for (name, values) in [
        ("tag:team", vec!["red"]),
        ("tag:team", vec!["red", "blue"]),
        ("tag-key", vec!["kind"]),
        ("tag-value", vec!["blue", "gpu"]),
        ("tag:team", vec!["green"]),
    ] {
        let filter = Filter::builder().name(name).set_values(Some(values.iter().map(ToString::to_string).collect()));
        let found = aws.describe_auto_scaling_groups().filters(filter.build()).send().await.unwrap();
        told.names(&format!("{name} {values:?}"), found.auto_scaling_groups());
    }
    let named = aws.describe_auto_scaling_groups().auto_scaling_group_names("gpu").auto_scaling_group_names("none");
    told.names("by name", named.send().await.unwrap().auto_scaling_groups());
    for size in [1, 3, 4, 5] {
        let mut pages = aws.describe_auto_scaling_groups().into_paginator().page_size(size).send();
        let (mut sizes, mut groups) = (Vec::new(), Vec::new());
        while let Some(page) = pages.next().await {
            let page = page.unwrap();
            sizes.push(page.auto_scaling_groups().len());
            groups.extend_from_slice(page.auto_scaling_groups());
        }
        told.names(&format!("pages of {size}: {sizes:?}"), &groups);
    }

    for (name, transition) in [("warm", "LAUNCHING"), ("drain", "TERMINATING")] {
        let hook = aws.put_lifecycle_hook().auto_scaling_group_name("gpu").lifecycle_hook_name(name);
        let hook = hook.lifecycle_transition(format!("autoscaling:EC2_INSTANCE_{transition}"));
        told.outcome("hook", hook.send().await);
    }
    let hook = aws.put_lifecycle_hook().auto_scaling_group_name("gpu").lifecycle_hook_name("drain");
    let hook = hook.lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING").heartbeat_timeout(60);
    told.outcome("hook anew", hook.default_result("CONTINUE").send().await);
    told.hooks().await;
    let delete = aws.delete_lifecycle_hook().auto_scaling_group_name("gpu").lifecycle_hook_name("warm");
    told.outcome("delete a hook", delete.send().await);
    told.hooks().await;

    for name in ["cpu", "spread"] {
        let delete = aws.delete_auto_scaling_group().auto_scaling_group_name(name).force_delete(true);
        told.outcome(&format!("delete {name}"), delete.send().await);
    }
    told.groups("what is left").await;
    told.lines
}

/// What was told so far, and how to ask for more.
struct Told<'a> {
    aws: &'a Client,
    lines: Vec<String>,
}

impl Told<'_> {
    fn line(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn outcome<T, E: ProvideErrorMetadata + std::fmt::Debug>(&mut self, what: &str, outcome: Result<T, SdkError<E>>) {
        let outcome = outcome.map_or_else(|error| error.code().unwrap_or("no code").to_owned(), |_| "done".to_owned());
        self.line(&format!("{what}: {outcome}"));
    }

    fn names(&mut self, what: &str, groups: &[AutoScalingGroup]) {
        let mut names: Vec<_> = groups.iter().filter_map(AutoScalingGroup::auto_scaling_group_name).collect();
        names.sort_unstable();
        self.line(&format!("{what}: {names:?}"));
    }

    async fn groups(&mut self, what: &str) {
        self.line(what);
        let mut groups = self.aws.describe_auto_scaling_groups().send().await.unwrap().auto_scaling_groups().to_vec();
        groups.sort_by_key(|group| group.auto_scaling_group_name().map(str::to_owned));
        for group in &groups {
            self.line(&summary(group));
        }
    }

    /// The ids, in the order in which they are told.
    async fn instances(&self, group: &str) -> Vec<String> {
        let told = self.aws.describe_auto_scaling_groups().auto_scaling_group_names(group).send().await.unwrap();
        let instances = told.auto_scaling_groups()[0].instances().to_vec();
        instances.iter().filter_map(|instance| instance.instance_id().map(str::to_owned)).collect()
    }

    async fn tags(&mut self) {
        let filter = Filter::builder().name("auto-scaling-group").values("cpu").build();
        let mut tags = self.aws.describe_tags().filters(filter).send().await.unwrap().tags().to_vec();
        tags.sort_by_key(|tag| tag.key().map(str::to_owned));
        for tag in &tags {
            let (of, kind) = (tag.resource_id().unwrap_or_default(), tag.resource_type().unwrap_or_default());
            self.line(&format!("{kind} {of}: {:?}={:?} {:?}", tag.key(), tag.value(), tag.propagate_at_launch()));
        }
    }

    async fn hooks(&mut self) {
        let told = self.aws.describe_lifecycle_hooks().auto_scaling_group_name("gpu").send().await.unwrap();
        let mut hooks = told.lifecycle_hooks().to_vec();
        hooks.sort_by_key(|hook| hook.lifecycle_hook_name().map(str::to_owned));
        for hook in &hooks {
            self.line(&format!(
                "hook {:?} of {:?}: {:?} {:?} s, then {:?}",
                hook.lifecycle_hook_name(),
                hook.auto_scaling_group_name(),
                hook.lifecycle_transition(),
                hook.heartbeat_timeout(),
                hook.default_result(),
            ));
        }
    }
}

/// What an autoscaler reads of a group, without what is each server's own: ids, times, order.
fn summary(group: &AutoScalingGroup) -> String {
    let template = |specification: Option<&LaunchTemplateSpecification>| {
        specification.map(|one| (one.launch_template_name().map(str::to_owned), one.version().map(str::to_owned)))
    };
    let policy = group.mixed_instances_policy().map(|policy| {
        let launch = policy.launch_template();
        let types = launch.map(|launch| launch.overrides().iter().filter_map(LaunchTemplateOverrides::instance_type));
        let shares = policy.instances_distribution().map(|shares| {
            let shares = (shares.on_demand_base_capacity(), shares.on_demand_percentage_above_base_capacity());
            format!("{shares:?}")
        });
        let types = types.into_iter().flatten().collect::<Vec<_>>().join(" ");
        format!("{types} {shares:?} {:?}", template(launch.and_then(LaunchTemplate::launch_template_specification)))
    });
    let mut zones = group.availability_zones().to_vec();
    zones.sort_unstable();
    let mut tags: Vec<_> = group.tags().iter().map(|tag| (tag.key(), tag.value(), tag.propagate_at_launch())).collect();
    tags.sort_unstable();
    let mut instances: Vec<_> = group
        .instances()
        .iter()
        .map(|instance| {
            let zone = instance.availability_zone().filter(|_| zones.len() == 1);
            let state = instance.lifecycle_state().map(|state| state.as_str().to_owned());
            format!(
                "{zone:?} {:?} {state:?} {:?} {:?}",
                instance.instance_type(),
                instance.health_status(),
                instance.protected_from_scale_in(),
            )
        })
        .collect();
    instances.sort_unstable();
    let suspended: Vec<_> = group.suspended_processes().iter().filter_map(|process| process.process_name()).collect();
    let name = group.auto_scaling_group_name().unwrap_or_default();
    let arn = group.auto_scaling_group_arn().unwrap_or_default();
    json!({
        "name": name,
        "arn": [arn.split(':').take(6).collect::<Vec<_>>(), [arn.ends_with(&format!("autoScalingGroupName/{name}"))]],
        "bounds": [group.min_size(), group.desired_capacity(), group.max_size()],
        "zones": zones,
        "template": template(group.launch_template()),
        "policy": policy,
        "instances": instances,
        "tags": format!("{tags:?}"),
        "suspended": suspended,
        "cooldown": group.default_cooldown(),
        "health": group.health_check_type(),
        "terminates": group.termination_policies(),
        "protects": group.new_instances_protected_from_scale_in(),
        "created": group.created_time().is_some(),
    })
    .to_string()
}

fn specification(name: &str) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder().launch_template_name(name).version("$Default").build()
}

fn tag(group: &str, key: &str, value: &str) -> Tag {
    let tag = Tag::builder().resource_id(group).resource_type("auto-scaling-group").key(key).value(value);
    tag.propagate_at_launch(true).build()
}

/// One that plays AWS, stopped on drop.
struct Server {
    _program: Program,
    address: String,
    aws: Client,
}

impl Server {
    async fn ours(folder: &std::path::Path) -> Self {
        let port = free_port();
        let config = folder.join("fake-aws.json");
        let text = json!({"port": port, "region": REGION, "log": folder.join("fake-aws-calls.jsonl")});
        std::fs::write(&config, text.to_string()).unwrap();
        let mut command = Command::new(binary("fake-aws"));
        command.arg(config);
        Self::start("fake-aws", command, port, folder).await
    }

    async fn moto(folder: &std::path::Path) -> Self {
        let found = Command::new(binary("xtask")).args(["lab", "moto"]).output().unwrap();
        assert!(found.status.success(), "moto was not installed: {}", String::from_utf8_lossy(&found.stderr));
        let port = free_port();
        let mut command = Command::new(String::from_utf8(found.stdout).unwrap().trim());
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        Self::start("moto", command, port, folder).await
    }

    async fn start(name: &str, command: Command, port: u16, folder: &std::path::Path) -> Self {
        let program = Program::start(name, command, folder.join(format!("{name}.log")));
        let address = format!("127.0.0.1:{port}");
        let listens = async || tokio::net::TcpStream::connect(&address).await.is_ok();
        wait_until(&format!("{name} to listen"), SOON, listens, async || program.log()).await;
        let tls = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let config = aws_sdk_autoscaling::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new("lab", "lab", None, None, "lab"))
            .endpoint_url(format!("http://{address}"))
            .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https())
            .region(Region::new(REGION))
            .retry_config(RetryConfig::disabled());
        Self { _program: program, address, aws: Client::from_conf(config.build()) }
    }

    /// EC2's call, by hand: nothing else here needs its SDK.
    async fn create_launch_template(&self, name: &str, instance_type: &str) {
        let body = format!(
            "Action=CreateLaunchTemplate&Version=2016-11-15&LaunchTemplateName={name}\
             &LaunchTemplateData.InstanceType={instance_type}&LaunchTemplateData.ImageId=ami-12c6146b"
        );
        let scope = format!("lab/20260101/{REGION}/ec2/aws4_request");
        let signature = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let headers = [("Authorization", signature.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
        let (status, reply) = http(&self.address, "POST", "/", &headers, &body).await;
        assert_eq!(status, 200, "{reply}");
    }
}
