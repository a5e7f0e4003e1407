//! The actions that change something, each under its name in the API.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::group::{Group, Hook, HookResult, Offer, Tag, Template, Transition};
use super::{Refusal, Service, second};
use crate::error::ApiError;
use crate::faults::Market;
use crate::query::Params;

/// What LaunchInstances launches at most at once.
const LAUNCHES_AT_MOST: u32 = 100;
const HEARTBEAT_SECONDS: std::ops::RangeInclusive<u32> = 30..=7200;
const DEFAULT_HEARTBEAT_SECONDS: u32 = 3600;
/// What can be suspended. Only Launch and Terminate mean something here.
const PROCESSES: [&str; 9] = [
    "AZRebalance",
    "AddToLoadBalancer",
    "AlarmNotification",
    "HealthCheck",
    "InstanceRefresh",
    "Launch",
    "ReplaceUnhealthy",
    "ScheduledActions",
    "Terminate",
];

impl Service {
    pub(super) fn act(&mut self, now: Timestamp, action: &str, params: &Params) -> Result<Value, ApiError> {
        match action {
            "CompleteLifecycleAction" => self.complete_lifecycle_action(now, params),
            "CreateAutoScalingGroup" => self.create_auto_scaling_group(now, params),
            "CreateLaunchTemplate" => self.create_launch_template(params),
            "CreateOrUpdateTags" => self.create_or_update_tags(params),
            "DeleteAutoScalingGroup" => self.delete_auto_scaling_group(params),
            "DeleteLifecycleHook" => self.delete_lifecycle_hook(params),
            "DeleteTags" => self.delete_tags(params),
            "DescribeAutoScalingGroups" => self.describe_auto_scaling_groups(params),
            "DescribeAutoScalingInstances" => self.describe_auto_scaling_instances(params),
            "DescribeLifecycleHooks" => self.describe_lifecycle_hooks(params),
            "DescribeScalingActivities" => self.describe_scaling_activities(params),
            "DescribeTags" => self.describe_tags(params),
            "LaunchInstances" => self.launch_instances(now, params),
            "PutLifecycleHook" => self.put_lifecycle_hook(params),
            "RecordLifecycleActionHeartbeat" => self.record_lifecycle_action_heartbeat(now, params),
            "ResumeProcesses" => self.resume_processes(now, params),
            "SetDesiredCapacity" => self.set_desired_capacity(now, params),
            "SetInstanceProtection" => self.set_instance_protection(params),
            "SuspendProcesses" => self.suspend_processes(params),
            "TerminateInstanceInAutoScalingGroup" => self.terminate_instance_in_auto_scaling_group(now, params),
            "UpdateAutoScalingGroup" => self.update_auto_scaling_group(now, params),
            _ => {
                let message = format!(
                    "Could not find operation {action} for version 2011-01-01: this is a fake, see its \
                                       `act` for what it plays"
                );
                Err(ApiError::new("InvalidAction", message))
            }
        }
    }

    /// EC2's, as far as a group needs it: a name for an instance type.
    fn create_launch_template(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = params.required("LaunchTemplateName")?.to_owned();
        if self.templates.contains_key(&name) {
            let message = format!("Launch template name already in use: {name}");
            return Err(ApiError::new("InvalidLaunchTemplateName.AlreadyExistsException", message));
        }
        let id = self.ids.resource("lt");
        let instance_type = params.text("LaunchTemplateData.InstanceType").map(str::to_owned);
        let template = Template { id: id.clone(), name: name.clone(), version: "1".to_owned(), instance_type };
        self.templates.insert(name.clone(), template);
        Ok(json!({"launchTemplate": {
            "launchTemplateId": id, "launchTemplateName": name, "defaultVersionNumber": 1, "latestVersionNumber": 1,
        }}))
    }

    fn create_auto_scaling_group(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let name = params.required("AutoScalingGroupName")?.to_owned();
        if self.groups.contains_key(&name) {
            let message =
                format!("AutoScalingGroup by this name already exists - A group with the name {name} already exists");
            return Err(ApiError::new("AlreadyExists", message));
        }
        let (min, max) = (params.required_number("MinSize")?, params.required_number("MaxSize")?);
        let desired = params.number("DesiredCapacity")?.unwrap_or(min);
        check_bounds(min, desired, max)?;
        let offer = self.offer(params)?.ok_or_else(|| {
            ApiError::validation(
                "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or \
                 MixedInstancesPolicy parameter.",
            )
        })?;
        let (zones, by_subnet) = self
            .zones(params)?
            .ok_or_else(|| ApiError::validation("At least one Availability Zone or VPC Subnet is required."))?;
        let uuid = self.ids.uuid();
        let mut group = Group {
            name: name.clone(),
            arn: self.region.group_arn(&uuid, &name),
            created: now,
            min,
            max,
            desired,
            zones,
            by_subnet,
            offer,
            tags: Default::default(),
            hooks: Default::default(),
            suspended: Default::default(),
            protects_new_instances: params.flag("NewInstancesProtectedFromScaleIn")?.unwrap_or(false),
            instances: Vec::new(),
            acts_at: None,
            asked: format!(
                "At {} a user request created an AutoScalingGroup changing the desired capacity from 0 to {desired}.  ",
                second(now)
            ),
        };
        for tag in params.structures("Tags") {
            group.tags.insert(tag.required("Key")?.to_owned(), read_tag(&tag)?);
        }
        for hook in params.structures("LifecycleHookSpecificationList") {
            group.hooks.insert(hook.required("LifecycleHookName")?.to_owned(), read_hook(&hook, None)?);
        }
        self.groups.insert(name.clone(), group);
        self.act_soon(now, &name);
        Ok(Value::Null)
    }

    fn update_auto_scaling_group(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let (offer, zones) = (self.offer(params)?, self.zones(params)?);
        let protects = params.flag("NewInstancesProtectedFromScaleIn")?;
        let group = &self.groups[&name];
        let min = params.number("MinSize")?.unwrap_or(group.min);
        let max = params.number("MaxSize")?.unwrap_or(group.max);
        // A bound that is moved takes the desired capacity along, unless that is given.
        let kept = if min <= max { group.desired.clamp(min, max) } else { group.desired };
        let desired = params.number("DesiredCapacity")?.unwrap_or(kept);
        check_bounds(min, desired, max)?;
        let group = self.group_mut(&name);
        if desired != group.desired {
            group.asked = format!(
                "At {} a user request update of AutoScalingGroup constraints to min: {min}, max: {max}, desired: \
                 {desired} changing the desired capacity from {} to {desired}.  ",
                second(now),
                group.desired
            );
        }
        (group.min, group.max, group.desired) = (min, max, desired);
        group.protects_new_instances = protects.unwrap_or(group.protects_new_instances);
        if let Some(offer) = offer {
            group.offer = offer;
        }
        if let Some((zones, by_subnet)) = zones {
            (group.zones, group.by_subnet) = (zones, by_subnet);
        }
        self.act_soon(now, &name);
        Ok(Value::Null)
    }

    fn delete_auto_scaling_group(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        if !self.groups[&name].instances.is_empty() && !params.flag("ForceDelete")?.unwrap_or(false) {
            return Err(ApiError::new(
                "ResourceInUse",
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) \
                 still in the group.",
            ));
        }
        self.groups.remove(&name);
        Ok(Value::Null)
    }

    fn set_desired_capacity(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let desired = params.required_number("DesiredCapacity")?;
        let group = self.group_mut(&name);
        let outside = |side, bound| {
            let value = format!("New SetDesiredCapacity value {desired} is {side} value {bound}");
            Err(ApiError::validation(format!("{value} for the AutoScalingGroup.")))
        };
        if desired > group.max {
            return outside("above max", group.max);
        }
        if desired < group.min {
            return outside("below min", group.min);
        }
        if desired != group.desired {
            group.asked = format!(
                "At {} a user request explicitly set group desired capacity changing the desired capacity from {} to \
                 {desired}.  ",
                second(now),
                group.desired
            );
            group.desired = desired;
        }
        self.act_soon(now, &name);
        Ok(Value::Null)
    }

    fn terminate_instance_in_auto_scaling_group(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let id = params.required("InstanceId")?.to_owned();
        params.required("ShouldDecrementDesiredCapacity")?;
        let decrement = params.flag("ShouldDecrementDesiredCapacity")?.unwrap_or(false);
        let Some((name, index)) = self.find(&id) else {
            let message = format!("Instance Id not found - No managed instance found for instance ID: {id}");
            return Err(ApiError::validation(message));
        };
        let instance = &self.groups[&name].instances[index];
        if !instance.lifecycle.is_live() {
            // It goes already, and is neither counted nor let go twice.
            return Ok(json!({"Activity": self.activities[instance.activity.0].describe()}));
        }
        let group = self.group_mut(&name);
        let before = group.desired;
        let mut cause =
            format!("At {} instance {id} was taken out of service in response to a user request", second(now));
        if decrement {
            if before <= group.min {
                return Err(ApiError::validation(format!(
                    "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will violate \
                     group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower \
                     group's min size.",
                    group.min
                )));
            }
            group.desired -= 1;
            cause += &format!(", shrinking the capacity from {before} to {}", group.desired);
        }
        let activity = self.terminate(now, &name, index, cause + ".");
        self.act_soon(now, &name);
        Ok(json!({"Activity": self.activities[activity.0].describe()}))
    }

    /// Launches now what can be launched now, in one zone. What fails counts as desired only if it is to be tried again.
    fn launch_instances(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let count = params.required_number("RequestedCapacity")?;
        let token = params.required("ClientToken")?.to_owned();
        if let Some((asked, answer)) = self.launches.get(&token) {
            if asked != params {
                let message = format!("The client token {token} was used with other parameters before");
                return Err(ApiError::new("IdempotentParameterMismatch", message));
            }
            return Ok(answer.clone());
        }
        let retry = match params.text("RetryStrategy") {
            None | Some("none") => false,
            Some("retry-with-group-configuration") => true,
            Some(other) => {
                let allowed = "Member must satisfy enum value set: [none, retry-with-group-configuration]";
                return Err(ApiError::constraint(Some(other), "RetryStrategy", allowed));
            }
        };
        if !(1..=LAUNCHES_AT_MOST).contains(&count) {
            let allowed = "Member must have value between 1 and 100";
            return Err(ApiError::constraint(Some(&count.to_string()), "RequestedCapacity", allowed));
        }
        let group = &self.groups[&name];
        if group.offer.policy.is_some() && !matches!(group.offer.on_demand_percent, 0 | 100) {
            return Err(ApiError::validation(
                "LaunchInstances does not support a mixed instances policy that combines On-Demand and Spot Instances.",
            ));
        }
        let zone = self.launch_zone(group, params)?;
        let before = group.desired;
        if before + count > group.max {
            return Err(ApiError::validation(format!(
                "The requested capacity {count} and the desired capacity {before} together are above max value {} for \
                 the AutoScalingGroup.",
                group.max
            )));
        }
        // AWS's wording of this cause is not known to us.
        let cause = format!(
            "At {} a user request launched instances synchronously, increasing the capacity from {before} to {}.",
            second(now),
            before + count
        );
        let (mut launched, mut refused) = (Vec::<String>::new(), Vec::<Refusal>::new());
        for _ in 0..count {
            match self.launch(now, &name, std::slice::from_ref(&zone), &cause) {
                Ok(id) => launched.push(id),
                Err(refusals) => refused.extend(refusals),
            }
        }
        let got = u32::try_from(launched.len()).unwrap_or(count);
        self.group_mut(&name).desired += if retry { count } else { got };
        if retry && got < count {
            self.group_mut(&name).acts_at = Some(now + Duration::from_millis(self.timing.retry_ms.max(1)));
        }
        let answer = json!({
            "AutoScalingGroupName": name,
            "ClientToken": token,
            "Instances": self.collections(&name, &launched),
            "Errors": self.launch_errors(refused),
        });
        self.launches.insert(token, (params.clone(), answer.clone()));
        Ok(answer)
    }

    /// The one zone that a synchronous launch is for: named as such, by its id or by its subnet.
    fn launch_zone(&self, group: &Group, params: &Params) -> Result<String, ApiError> {
        let zones = params.texts("AvailabilityZones").into_iter();
        let by_id = params.texts("AvailabilityZoneIds").into_iter().map(|id| {
            let zone = group.zones.iter().find(|zone| self.region.zone_id(zone) == id);
            zone.cloned().unwrap_or(id)
        });
        let by_subnet =
            params.texts("SubnetIds").into_iter().map(|subnet| self.region.zone_of_subnet(&subnet).unwrap_or(subnet));
        let mut named: Vec<String> = zones.chain(by_id).chain(by_subnet).collect();
        named.dedup();
        match (named.as_slice(), group.zones.as_slice()) {
            ([], [only]) => Ok(only.clone()),
            ([], _) => Err(ApiError::validation(
                "Either AvailabilityZones or SubnetIds must be specified for groups with multiple Availability Zones.",
            )),
            ([zone], own) if own.contains(zone) => Ok(zone.clone()),
            ([zone], own) => Err(ApiError::validation(format!(
                "{zone} is not one of the Availability Zones of the AutoScalingGroup: {}",
                own.join(", ")
            ))),
            (more, _) => {
                Err(ApiError::validation(format!("Only one Availability Zone at a time: {}", more.join(", "))))
            }
        }
    }

    fn put_lifecycle_hook(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let hook = params.required("LifecycleHookName")?.to_owned();
        let read = read_hook(params, self.groups[&name].hooks.get(&hook))?;
        self.group_mut(&name).hooks.insert(hook, read);
        Ok(json!({}))
    }

    fn delete_lifecycle_hook(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let hook = params.required("LifecycleHookName")?;
        if self.group_mut(&name).hooks.remove(hook).is_none() {
            return Err(no_hook(hook));
        }
        Ok(json!({}))
    }

    fn complete_lifecycle_action(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let result = params.required("LifecycleActionResult")?;
        let result = HookResult::ALL.into_iter().find(|known| known.as_str() == result).ok_or_else(|| {
            ApiError::validation(format!("Lifecycle Action Result {result} is neither CONTINUE nor ABANDON"))
        })?;
        let (name, index, token) = self.held(params)?;
        self.release(now, &name, index, &token, result, "Lifecycle Action Completed with ABANDON Result");
        Ok(json!({}))
    }

    fn record_lifecycle_action_heartbeat(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let (name, index, token) = self.held(params)?;
        let group = self.group_mut(&name);
        let hold = group.instances[index]
            .lifecycle
            .holds()
            .and_then(|holds| holds.iter_mut().find(|hold| hold.token == token));
        let hold = hold.expect("`held` has found it");
        let seconds = group.hooks.get(&hold.hook).map_or(0, |hook| hook.heartbeat_seconds);
        hold.until = hold.at_most.min(now + Duration::from_secs(u64::from(seconds)));
        Ok(json!({}))
    }

    /// The group, the instance and the token of the lifecycle action that a call is about.
    fn held(&mut self, params: &Params) -> Result<(String, usize, String), ApiError> {
        let name = self.named(params)?;
        let hook = params.required("LifecycleHookName")?;
        let group = self.group_mut(&name);
        if !group.hooks.contains_key(hook) {
            return Err(no_hook(hook));
        }
        let (id, token) = (params.text("InstanceId"), params.text("LifecycleActionToken"));
        for (index, instance) in group.instances.iter_mut().enumerate() {
            if id.is_some_and(|id| id != instance.id) {
                continue;
            }
            let hold = instance.lifecycle.holds().and_then(|holds| {
                let fits = |own: &str| token.is_none_or(|token| token == own);
                holds.iter().find(|hold| hold.hook == hook && fits(&hold.token) && (id.is_some() || token.is_some()))
            });
            if let Some(hold) = hold {
                return Ok((name, index, hold.token.clone()));
            }
        }
        let named = match (token, id) {
            (Some(token), _) => format!("token {token}"),
            (None, id) => format!("instance ID {}", id.unwrap_or("null")),
        };
        Err(ApiError::validation(format!("No active Lifecycle Action found with {named}")))
    }

    fn create_or_update_tags(&mut self, params: &Params) -> Result<Value, ApiError> {
        for tag in params.structures("Tags") {
            let name = self.existing(tag.required("ResourceId")?)?;
            let (key, read) = (tag.required("Key")?.to_owned(), read_tag(&tag)?);
            self.group_mut(&name).tags.insert(key, read);
        }
        Ok(Value::Null)
    }

    fn delete_tags(&mut self, params: &Params) -> Result<Value, ApiError> {
        for tag in params.structures("Tags") {
            let name = self.existing(tag.required("ResourceId")?)?;
            self.group_mut(&name).tags.remove(tag.required("Key")?);
        }
        Ok(Value::Null)
    }

    fn set_instance_protection(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        params.required("ProtectedFromScaleIn")?;
        let protected = params.flag("ProtectedFromScaleIn")?.unwrap_or(false);
        let ids = params.texts("InstanceIds");
        let group = self.group_mut(&name);
        for id in &ids {
            if !group.instances.iter().any(|instance| instance.id == *id) {
                let message = format!("The instance {id} is not part of Auto Scaling group {name}.");
                return Err(ApiError::validation(message));
            }
        }
        for instance in group.instances.iter_mut().filter(|instance| ids.contains(&instance.id)) {
            instance.protected = protected;
        }
        Ok(json!({}))
    }

    fn suspend_processes(&mut self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let processes = processes(params)?;
        self.group_mut(&name).suspended.extend(processes);
        Ok(Value::Null)
    }

    fn resume_processes(&mut self, now: Timestamp, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let processes = processes(params)?;
        self.group_mut(&name).suspended.retain(|process| !processes.contains(process));
        self.act_soon(now, &name);
        Ok(Value::Null)
    }

    /// The group that `AutoScalingGroupName` names.
    pub(super) fn named(&self, params: &Params) -> Result<String, ApiError> {
        self.existing(params.required("AutoScalingGroupName")?)
    }

    fn existing(&self, name: &str) -> Result<String, ApiError> {
        if self.groups.contains_key(name) {
            return Ok(name.to_owned());
        }
        let message = format!("AutoScalingGroup name not found - AutoScalingGroup '{name}' not found");
        Err(ApiError::validation(message))
    }

    /// The zones that a call gives, and whether it gives subnets.
    fn zones(&self, params: &Params) -> Result<Option<(Vec<String>, bool)>, ApiError> {
        if let Some(subnets) = params.text("VPCZoneIdentifier").filter(|subnets| !subnets.is_empty()) {
            let zone = |subnet: &str| {
                let message = || format!("The subnet ID '{subnet}' does not exist");
                self.region.zone_of_subnet(subnet).ok_or_else(|| ApiError::validation(message()))
            };
            let zones = subnets.split(',').map(|subnet| zone(subnet.trim())).collect::<Result<_, _>>()?;
            return Ok(Some((zones, true)));
        }
        let zones = params.texts("AvailabilityZones");
        if let Some(unknown) = zones.iter().find(|zone| !self.region.has_zone(zone)) {
            return Err(ApiError::validation(format!("Invalid availability zones: [{unknown}]")));
        }
        Ok((!zones.is_empty()).then_some((zones, false)))
    }

    /// What a call says that the group is to launch.
    fn offer(&self, params: &Params) -> Result<Option<Offer>, ApiError> {
        let plain = params.tree("LaunchTemplate");
        let mut policy = params.tree("MixedInstancesPolicy");
        if policy.is_null() {
            if plain.is_null() {
                return Ok(None);
            }
            let template = self.template(&plain)?;
            let types = template.instance_type.iter().cloned().collect::<Vec<_>>();
            if types.is_empty() {
                return Err(ApiError::validation(
                    "You must use a valid fully-formed launch template. The request must contain the parameter InstanceType",
                ));
            }
            return Ok(Some(Offer { template, types, policy: None, on_demand_base: 0, on_demand_percent: 100 }));
        }
        let template = self.template(&policy["LaunchTemplate"]["LaunchTemplateSpecification"])?;
        let overrides = policy["LaunchTemplate"]["Overrides"].as_array().cloned().unwrap_or_default();
        let mut types: Vec<String> =
            overrides.iter().filter_map(|one| one["InstanceType"].as_str().map(str::to_owned)).collect();
        if types.is_empty() {
            types.extend(template.instance_type.clone());
        }
        // As AWS shows a policy: with what was left out.
        let distribution = &mut policy["InstancesDistribution"];
        for (field, default) in [
            ("OnDemandAllocationStrategy", "prioritized"),
            ("OnDemandBaseCapacity", "0"),
            ("OnDemandPercentageAboveBaseCapacity", "100"),
            ("SpotAllocationStrategy", "lowest-price"),
        ] {
            if distribution[field].is_null() {
                distribution[field] = default.into();
            }
        }
        let number = |field: &str| {
            let text = distribution[field].as_str().unwrap_or_default();
            let problem = || ApiError::new("MalformedInput", format!("{field}={text} is not a number"));
            text.parse::<u32>().map_err(|_| problem())
        };
        let (on_demand_base, on_demand_percent) =
            (number("OnDemandBaseCapacity")?, number("OnDemandPercentageAboveBaseCapacity")?);
        Ok(Some(Offer { template, types, policy: Some(policy), on_demand_base, on_demand_percent }))
    }

    fn template(&self, asked: &Value) -> Result<Template, ApiError> {
        let (id, name) = (asked["LaunchTemplateId"].as_str(), asked["LaunchTemplateName"].as_str());
        let mut known = self.templates.values();
        let found = match (id, name) {
            (Some(id), _) => known.find(|template| template.id == id),
            (None, Some(name)) => known.find(|template| template.name == name),
            (None, None) => {
                let message = "Valid requests must contain either launchTemplateId or LaunchTemplateName";
                return Err(ApiError::validation(message));
            }
        };
        let found = found.ok_or_else(|| {
            ApiError::validation(
                "You must use a valid fully-formed launch template. The specified launch template does not exist.",
            )
        })?;
        let version = asked["Version"].as_str().unwrap_or("$Default").to_owned();
        Ok(Template { version, ..found.clone() })
    }

    /// As a fleet answers: one entry for each kind of error, however many launches it cost.
    fn launch_errors(&self, refused: Vec<Refusal>) -> Vec<Value> {
        let mut errors = Vec::new();
        for Refusal { zone, instance_type, market, code, message } in refused {
            let error = json!({
                "AvailabilityZone": zone,
                "AvailabilityZoneId": self.region.zone_id(&zone),
                "SubnetId": self.region.subnet(&zone),
                "InstanceType": instance_type,
                "MarketType": market.to_string(),
                "ErrorCode": code,
                "ErrorMessage": message,
            });
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
        errors
    }

    /// The instances by what they have in common.
    fn collections(&self, name: &str, ids: &[String]) -> Vec<Value> {
        let mut collections: Vec<((&str, Market), Vec<&str>)> = Vec::new();
        let new = self.groups[name].instances.iter().filter(|instance| ids.contains(&instance.id));
        let mut zone = "";
        for instance in new {
            // All of one call are in one zone.
            zone = &instance.zone;
            let kind = (instance.instance_type.as_str(), instance.market);
            match collections.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, ids)) => ids.push(&instance.id),
                None => collections.push((kind, vec![&instance.id])),
            }
        }
        let describe = |((instance_type, market), ids): ((&str, Market), Vec<&str>)| {
            json!({
                "AvailabilityZone": zone,
                "AvailabilityZoneId": self.region.zone_id(zone),
                "SubnetId": self.region.subnet(zone),
                "InstanceType": instance_type,
                "MarketType": market.to_string(),
                "InstanceIds": ids,
            })
        };
        collections.into_iter().map(describe).collect()
    }
}

fn check_bounds(min: u32, desired: u32, max: u32) -> Result<(), ApiError> {
    if max < min {
        let message = format!("Max bound, {max}, must be greater than or equal to min bound, {min}");
        return Err(ApiError::validation(message));
    }
    if !(min..=max).contains(&desired) {
        let message =
            format!("Desired capacity:{desired} must be between the specified min size:{min} and max size:{max}");
        return Err(ApiError::validation(message));
    }
    Ok(())
}

fn read_tag(tag: &Params) -> Result<Tag, ApiError> {
    let value = tag.text("Value").unwrap_or_default().to_owned();
    Ok(Tag { value, propagate: tag.flag("PropagateAtLaunch")?.unwrap_or(false) })
}

/// A hook as given; what is left out stays as it was.
fn read_hook(params: &Params, before: Option<&Hook>) -> Result<Hook, ApiError> {
    let transition = match (params.text("LifecycleTransition"), before) {
        (None, Some(before)) => before.transition,
        (given, _) => Transition::ALL.into_iter().find(|known| Some(known.as_str()) == given).ok_or_else(|| {
            let given = given.unwrap_or("null");
            ApiError::validation(format!("Invalid Lifecycle Transition. The specified transition was {given}"))
        })?,
    };
    let heartbeat_seconds = params
        .number("HeartbeatTimeout")?
        .or(before.map(|before| before.heartbeat_seconds))
        .unwrap_or(DEFAULT_HEARTBEAT_SECONDS);
    if !HEARTBEAT_SECONDS.contains(&heartbeat_seconds) {
        return Err(ApiError::validation("Heartbeat timeout must be between 30 and 7200 seconds"));
    }
    let default_result = match (params.text("DefaultResult"), before) {
        (None, before) => before.map_or(HookResult::Abandon, |before| before.default_result),
        (Some(given), _) => HookResult::ALL
            .into_iter()
            .find(|known| known.as_str() == given)
            .ok_or_else(|| ApiError::validation(format!("Default Result {given} is neither CONTINUE nor ABANDON")))?,
    };
    let metadata = params.text("NotificationMetadata").map(str::to_owned);
    let metadata = metadata.or(before.and_then(|before| before.metadata.clone()));
    Ok(Hook { transition, heartbeat_seconds, default_result, metadata })
}

fn no_hook(name: &str) -> ApiError {
    ApiError::validation(format!("No Lifecycle Hook found with name {name}"))
}

/// All of them where none is named.
fn processes(params: &Params) -> Result<Vec<String>, ApiError> {
    let named = params.texts("ScalingProcesses");
    if let Some(unknown) = named.iter().find(|name| !PROCESSES.contains(&name.as_str())) {
        return Err(ApiError::validation(format!("Invalid process name: {unknown}")));
    }
    Ok(if named.is_empty() { PROCESSES.map(str::to_owned).to_vec() } else { named })
}
