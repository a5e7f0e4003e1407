//! The Auto Scaling API: eight calls, and what their errors mean to the core.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{
    Activity, AutoScalingGroup, LaunchInstancesError, RetryStrategy, ScalingActivityStatusCode,
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use ebb_core::fleet::{self, Failure, GroupState};
use ebb_core::launch::LaunchFailure;
use ebb_core::time::Instant;

use crate::effects::{CALL_TIMEOUT, CallError, Outcome};
use crate::metrics::Metrics;

/// What the API takes at most in `AutoScalingGroupNames` and gives at most in one page.
const NAMES: usize = 100;
/// Of a group that lacks instances, each time that it is looked at.
const ACTIVITIES: i32 = 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

pub struct AutoScaling {
    client: Client,
    metrics: Arc<Metrics>,
}

impl AutoScaling {
    /// Region, credentials and endpoint come from the SDK's own environment.
    pub async fn from_env(metrics: Arc<Metrics>) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(CALL_TIMEOUT).build();
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            // The core decides what is tried again, and when: it may have changed its mind by then.
            .retry_config(RetryConfig::disabled())
            .load()
            .await;
        Self { client: Client::new(&config), metrics }
    }

    /// One call, counted under the API's own name for it.
    async fn call<T, E>(
        &self,
        operation: &'static str,
        reply: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, CallError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let reply = reply.await.map_err(|error| call_error(&error));
        self.metrics.aws_call(operation, reply.as_ref().err().map(|error| error.failure));
        reply
    }

    /// The state of those of these groups that exist.
    pub async fn describe(&self, names: &[String]) -> Result<Vec<GroupState>, CallError> {
        let mut groups = BTreeMap::new();
        for names in names.chunks(NAMES) {
            let request = self.client.describe_auto_scaling_groups().set_auto_scaling_group_names(Some(names.to_vec()));
            let mut pages = request.into_paginator().page_size(NAMES as i32).send();
            while let Some(page) = pages.next().await {
                let page = self.call("DescribeAutoScalingGroups", ready(page)).await?;
                // By name: a group that changes while we page may come twice.
                groups.extend(page.auto_scaling_groups().iter().map(state).map(|group| (group.name.clone(), group)));
            }
        }
        for group in groups.values_mut().filter(|group| count(&group.instances) < group.desired) {
            match self.failures(&group.name).await {
                Ok(failures) => group.failures = failures,
                // The groups' state is worth having without.
                Err(error) => tracing::warn!(group = group.name, %error, "cannot see why instances do not come"),
            }
        }
        Ok(groups.into_values().collect())
    }

    /// What failed of the last things that the group did, the newest first. One page: AWS gives the newest first, and what
    /// matters is whether what is tried now fails.
    async fn failures(&self, group: &str) -> Result<Vec<LaunchFailure>, CallError> {
        let call = self.client.describe_scaling_activities().auto_scaling_group_name(group).max_records(ACTIVITIES);
        let reply = self.call("DescribeScalingActivities", call.send()).await?;
        Ok(reply.activities().iter().filter_map(failure_of).collect())
    }

    /// Launches the instances from one desired capacity to the other in this zone, if that still is what it was. What
    /// cannot be launched is not tried again, and not desired either.
    pub async fn launch(&self, group: &str, zone: &str, from: u32, to: u32, token: &str) -> Result<Outcome, CallError> {
        self.expect_desired(group, from).await?;
        let call = self.client.launch_instances().auto_scaling_group_name(group).availability_zones(zone);
        let call = call.requested_capacity(i32::try_from(to - from).unwrap_or(i32::MAX)).client_token(token);
        let reply = self.call("LaunchInstances", call.retry_strategy(RetryStrategy::None).send()).await?;
        let failure = |error: &LaunchInstancesError| {
            let [code, message] = [error.error_code(), error.error_message()].map(Option::unwrap_or_default);
            format!("{code}: {message}")
        };
        Ok(Outcome::Launched {
            instances: reply.instances().iter().flat_map(|some| some.instance_ids()).cloned().collect(),
            failures: reply.errors().iter().map(failure).collect(),
        })
    }

    /// Sets the desired capacity if it still is `from`: without that, a capacity raised by somebody else would be
    /// lowered, and nodes at work terminated.
    pub async fn set_desired(&self, group: &str, from: u32, to: u32) -> Result<(), CallError> {
        self.expect_desired(group, from).await?;
        let call = self.client.set_desired_capacity().auto_scaling_group_name(group).honor_cooldown(false);
        let call = call.desired_capacity(i32::try_from(to).unwrap_or(i32::MAX));
        self.call("SetDesiredCapacity", call.send()).await?;
        Ok(())
    }

    /// The API knows no such condition, so look first.
    async fn expect_desired(&self, group: &str, expected: u32) -> Result<(), CallError> {
        let call = self.client.describe_auto_scaling_groups().auto_scaling_group_names(group);
        let reply = self.call("DescribeAutoScalingGroups", call.send()).await?;
        let Some(found) = reply.auto_scaling_groups().first().map(state) else {
            return Err(CallError { failure: Failure::NotFound, detail: format!("there is no group {group}") });
        };
        if found.desired != expected {
            let detail = format!("desired capacity of {group} is {}, not {expected}", found.desired);
            return Err(CallError { failure: Failure::Conflict, detail });
        }
        Ok(())
    }

    /// Keeps a lifecycle hook waiting for as long again as it does without.
    pub async fn heartbeat(&self, group: &str, instance: &str, hook: &str) -> Result<(), CallError> {
        let call = self.client.record_lifecycle_action_heartbeat().auto_scaling_group_name(group);
        let call = call.lifecycle_hook_name(hook).instance_id(instance);
        self.call("RecordLifecycleActionHeartbeat", call.send()).await?;
        Ok(())
    }

    /// Lets a lifecycle hook go.
    pub async fn complete(&self, group: &str, instance: &str, hook: &str) -> Result<(), CallError> {
        let call = self.client.complete_lifecycle_action().auto_scaling_group_name(group);
        let call = call.lifecycle_hook_name(hook).instance_id(instance).lifecycle_action_result("CONTINUE");
        self.call("CompleteLifecycleAction", call.send()).await?;
        Ok(())
    }

    /// Terminates exactly this instance, and lets no other take its place.
    pub async fn terminate(&self, instance: &str) -> Result<(), CallError> {
        let call = self.client.terminate_instance_in_auto_scaling_group().instance_id(instance);
        let call = call.should_decrement_desired_capacity(true);
        self.call("TerminateInstanceInAutoScalingGroup", call.send()).await?;
        Ok(())
    }
}

fn count(instances: &[fleet::Instance]) -> u32 {
    u32::try_from(instances.iter().filter(|instance| instance.live).count()).unwrap_or(u32::MAX)
}

/// `None`: it did not fail.
fn failure_of(activity: &Activity) -> Option<LaunchFailure> {
    let failed = matches!(
        activity.status_code(),
        Some(ScalingActivityStatusCode::Failed | ScalingActivityStatusCode::Cancelled)
    );
    let at = activity.start_time().filter(|_| failed)?.to_millis().ok()?;
    Some(LaunchFailure {
        at: Instant::from_millis(u64::try_from(at).ok()?),
        message: activity.status_message().unwrap_or_default().to_owned(),
    })
}

fn state(group: &AutoScalingGroup) -> GroupState {
    let count = |raw: Option<i32>| raw.and_then(|raw| u32::try_from(raw).ok()).unwrap_or(0);
    let instance = |instance: &aws_sdk_autoscaling::types::Instance| {
        let state = instance.lifecycle_state().map_or("", |state| state.as_str());
        fleet::Instance {
            id: instance.instance_id().unwrap_or_default().to_owned(),
            waits: state == "Terminating:Wait",
            live: state == "InService" || state.starts_with("Pending"),
            zone: instance.availability_zone().map(str::to_owned),
        }
    };
    GroupState {
        name: group.auto_scaling_group_name().unwrap_or_default().to_owned(),
        min: count(group.min_size()),
        max: count(group.max_size()),
        desired: count(group.desired_capacity()),
        instances: group.instances().iter().map(instance).collect(),
        zones: group.availability_zones().to_vec(),
        instance_types: instance_types(group),
        tags: group.tags().iter().filter_map(|tag| Some((tag.key()?.to_owned(), tag.value()?.to_owned()))).collect(),
        failures: Vec::new(),
    }
}

/// Of a mixed instances policy's overrides. One that says requirements of types rather than types is read as none.
fn instance_types(group: &AutoScalingGroup) -> Vec<String> {
    let template = group.mixed_instances_policy().and_then(|policy| policy.launch_template());
    let overrides = template.map(|template| template.overrides()).unwrap_or_default();
    overrides.iter().filter_map(|it| Some(it.instance_type()?.to_owned())).collect()
}

fn call_error<E>(error: &SdkError<E>) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let failure = match error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            failure(service.err().code().unwrap_or_default(), service.err().message().unwrap_or_default(), status)
        }
        // Not sent at all: no region, or an endpoint that is none.
        SdkError::ConstructionFailure(_) => Failure::Rejected,
        _ => Failure::Unavailable,
    };
    CallError { failure, detail: DisplayErrorContext(error).to_string() }
}

/// Source of the codes: EC2 Auto Scaling API reference, "Common errors" and each action's own.
fn failure(code: &str, message: &str, status: u16) -> Failure {
    match code {
        "RequestLimitExceeded" | "TooManyRequestsException" => Failure::Throttled,
        _ if code.starts_with("Throttl") => Failure::Throttled,
        "ResourceContention" | "ScalingActivityInProgress" | "ResourceInUse" => Failure::Conflict,
        "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId" | "MissingAuthenticationToken" => {
            Failure::Denied
        }
        "NotAuthorized" | "OptInRequired" | "SignatureDoesNotMatch" | "UnauthorizedOperation" => Failure::Denied,
        _ if code.starts_with("AccessDenied") || code.starts_with("UnrecognizedClient") => Failure::Denied,
        "ValidationError" if message.contains("not found") => Failure::NotFound,
        _ if status >= 500 => Failure::Unavailable,
        _ if status == 429 => Failure::Throttled,
        _ => Failure::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_told_apart() {
        let check = |code, message, status, expected| assert_eq!(failure(code, message, status), expected, "{code}");
        check("Throttling", "Rate exceeded", 400, Failure::Throttled);
        check("ThrottlingException", "", 400, Failure::Throttled);
        check("RequestLimitExceeded", "", 503, Failure::Throttled);
        check("", "", 429, Failure::Throttled);
        check("ScalingActivityInProgress", "", 400, Failure::Conflict);
        check("ResourceContention", "", 500, Failure::Conflict);
        check("AccessDenied", "", 403, Failure::Denied);
        check("AccessDeniedException", "", 400, Failure::Denied);
        check("UnauthorizedOperation", "", 403, Failure::Denied);
        check("ExpiredToken", "", 403, Failure::Denied);
        check("InvalidClientTokenId", "", 403, Failure::Denied);
        check("UnrecognizedClientException", "", 400, Failure::Denied);
        check("ValidationError", "AutoScalingGroup name not found - no such group", 400, Failure::NotFound);
        check("ValidationError", "Instance Id not found - No managed instance found", 400, Failure::NotFound);
        check("ValidationError", "New SetDesiredCapacity value 9 is above max value 4", 400, Failure::Rejected);
        check("InternalFailure", "", 500, Failure::Unavailable);
        check("ServiceUnavailable", "", 503, Failure::Unavailable);
        check("", "", 502, Failure::Unavailable);
        check("SomethingNew", "", 400, Failure::Rejected);
    }

    #[test]
    fn only_what_serves_or_is_about_to_is_live() {
        let check = |state: &str, live| {
            let waits = state == "Terminating:Wait";
            let instance =
                aws_sdk_autoscaling::types::Instance::builder().instance_id("i").lifecycle_state(state.into());
            let group = AutoScalingGroup::builder().desired_capacity(1).instances(instance.build()).build();
            assert_eq!(
                super::state(&group).instances,
                [fleet::Instance { id: "i".into(), live, waits, zone: None }],
                "{state}"
            );
        };
        for state in ["Pending", "Pending:Wait", "Pending:Proceed", "InService"] {
            check(state, true);
        }
        for state in ["Terminating", "Terminating:Wait", "Terminated", "Standby", "Detaching", "Warmed:Stopped"] {
            check(state, false);
        }
    }
}
