//! The actions that only tell, in pages.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::activity::instant;
use super::group::{Group, Instance, Template};
use super::{HEARTBEATS_AT_MOST, HOLD_AT_MOST, Service};
use crate::error::ApiError;
use crate::query::Params;
use crate::region::ACCOUNT;

impl Service {
    pub(super) fn describe_auto_scaling_groups(&self, params: &Params) -> Result<Value, ApiError> {
        let paging = Paging::read(params, 50, 100)?;
        let names = params.texts("AutoScalingGroupNames");
        if names.len() > paging.size {
            let message =
                format!("The number of AutoScalingGroupNames that may be passed in is limited to {}", paging.size);
            return Err(ApiError::validation(message));
        }
        let filters = read_filters(params)?;
        for (name, _) in &filters {
            if !matches!(name.as_str(), "tag-key" | "tag-value") && !name.starts_with("tag:") {
                return Err(unknown_filter(name, "tag-key, tag-value, tag:<key>"));
            }
        }
        let with_instances = params.flag("IncludeInstances")?.unwrap_or(true);
        let fits = |group: &&Group| {
            let named = names.is_empty() || names.contains(&group.name);
            named && filters.iter().all(|(filter, values)| has_tag(group, filter, values))
        };
        let groups = self.groups.values().filter(fits).map(|group| (group.name.clone(), group)).collect();
        let (groups, next) = paging.page(groups)?;
        let groups: Vec<Value> = groups.into_iter().map(|group| self.group_value(group, with_instances)).collect();
        Ok(json!({"AutoScalingGroups": groups, "NextToken": next}))
    }

    fn group_value(&self, group: &Group, with_instances: bool) -> Value {
        let subnets: Vec<String> = group.zones.iter().map(|zone| self.region.subnet(zone)).collect();
        let instances: Vec<Value> =
            group.instances.iter().map(|instance| self.instance_value(group, instance)).collect();
        let suspended = |process: &String| json!({"ProcessName": process, "SuspensionReason": "User suspended"});
        let plain = group.offer.policy.is_none().then(|| template_value(&group.offer.template));
        let mut policy = group.offer.policy.clone();
        if let Some(policy) = &mut policy {
            policy["LaunchTemplate"]["LaunchTemplateSpecification"] = template_value(&group.offer.template);
        }
        let role = "aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling";
        json!({
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            "LaunchTemplate": plain,
            "MixedInstancesPolicy": policy,
            "MinSize": group.min,
            "MaxSize": group.max,
            "DesiredCapacity": group.desired,
            "DefaultCooldown": 300,
            "AvailabilityZones": group.zones,
            "LoadBalancerNames": [],
            "TargetGroupARNs": [],
            "HealthCheckType": "EC2",
            "HealthCheckGracePeriod": 0,
            "Instances": if with_instances { instances } else { Vec::new() },
            "CreatedTime": instant(group.created),
            "SuspendedProcesses": group.suspended.iter().map(suspended).collect::<Vec<_>>(),
            "VPCZoneIdentifier": if group.by_subnet { subnets.join(",") } else { String::new() },
            "EnabledMetrics": [],
            "Tags": tag_values(group),
            "TerminationPolicies": ["Default"],
            "NewInstancesProtectedFromScaleIn": group.protects_new_instances,
            "ServiceLinkedRoleARN": format!("arn:aws:iam::{ACCOUNT}:role/{role}"),
            "CapacityRebalance": false,
            "TrafficSources": [],
        })
    }

    fn instance_value(&self, group: &Group, instance: &Instance) -> Value {
        json!({
            "InstanceId": instance.id,
            "InstanceType": instance.instance_type,
            "AvailabilityZone": instance.zone,
            "AvailabilityZoneId": self.region.zone_id(&instance.zone),
            "LifecycleState": instance.lifecycle.as_str(),
            "HealthStatus": "Healthy",
            "LaunchTemplate": template_value(&group.offer.template),
            "ProtectedFromScaleIn": instance.protected,
        })
    }

    pub(super) fn describe_auto_scaling_instances(&self, params: &Params) -> Result<Value, ApiError> {
        let paging = Paging::read(params, 50, 50)?;
        let ids = params.texts("InstanceIds");
        let mut instances = Vec::new();
        for group in self.groups.values() {
            for instance in &group.instances {
                if ids.is_empty() || ids.contains(&instance.id) {
                    let mut value = self.instance_value(group, instance);
                    value["AutoScalingGroupName"] = group.name.clone().into();
                    // Here, and only here, in capitals.
                    value["HealthStatus"] = "HEALTHY".into();
                    instances.push((instance.id.clone(), value));
                }
            }
        }
        let (instances, next) = paging.page(instances)?;
        Ok(json!({"AutoScalingInstances": instances, "NextToken": next}))
    }

    pub(super) fn describe_scaling_activities(&self, params: &Params) -> Result<Value, ApiError> {
        let paging = Paging::read(params, 100, 100)?;
        let deleted = params.flag("IncludeDeletedGroups")?.unwrap_or(false);
        let ids = params.texts("ActivityIds");
        let group = match params.text("AutoScalingGroupName") {
            Some(name) if deleted => Some(name.to_owned()),
            Some(_) => Some(self.named(params)?),
            None => None,
        };
        let filters = ActivityFilters::read(params)?;
        let newest_first = self.activities.iter().rev().filter(|activity| {
            group.as_ref().is_none_or(|name| *name == activity.group)
                && (deleted || self.groups.contains_key(&activity.group))
                && (ids.is_empty() || ids.contains(&activity.id))
                && filters.fit(activity.started, activity.state.code())
        });
        let (activities, next) = paging.page(newest_first.map(|activity| (activity.id.clone(), activity)).collect())?;
        let activities: Vec<Value> = activities.into_iter().map(|activity| activity.describe()).collect();
        Ok(json!({"Activities": activities, "NextToken": next}))
    }

    pub(super) fn describe_lifecycle_hooks(&self, params: &Params) -> Result<Value, ApiError> {
        let name = self.named(params)?;
        let names = params.texts("LifecycleHookNames");
        let hooks = self.groups[&name].hooks.iter().filter(|(hook, _)| names.is_empty() || names.contains(hook));
        let hooks = hooks.map(|(hook, settings)| {
            let longest = u64::from(settings.heartbeat_seconds) * u64::from(HEARTBEATS_AT_MOST);
            json!({
                "LifecycleHookName": hook,
                "AutoScalingGroupName": name,
                "LifecycleTransition": settings.transition.as_str(),
                "HeartbeatTimeout": settings.heartbeat_seconds,
                "GlobalTimeout": longest.min(HOLD_AT_MOST.as_secs()),
                "DefaultResult": settings.default_result.as_str(),
                "NotificationMetadata": settings.metadata,
            })
        });
        Ok(json!({"LifecycleHooks": hooks.collect::<Vec<_>>()}))
    }

    pub(super) fn describe_tags(&self, params: &Params) -> Result<Value, ApiError> {
        let paging = Paging::read(params, 50, 100)?;
        let filters = read_filters(params)?;
        let mut tags = Vec::new();
        for tag in self.groups.values().flat_map(tag_values) {
            let mut fits = true;
            for (filter, values) in &filters {
                let field = match filter.as_str() {
                    "auto-scaling-group" => "ResourceId",
                    "key" => "Key",
                    "value" => "Value",
                    "propagate-at-launch" => "PropagateAtLaunch",
                    other => {
                        return Err(unknown_filter(other, "auto-scaling-group, key, propagate-at-launch, value"));
                    }
                };
                let found = &tag[field];
                let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                fits &= values.contains(&text);
            }
            if fits {
                tags.push((format!("{}/{}", tag["ResourceId"], tag["Key"]), tag));
            }
        }
        let (tags, next) = paging.page(tags)?;
        Ok(json!({"Tags": tags, "NextToken": next}))
    }
}

fn template_value(template: &Template) -> Value {
    json!({
        "LaunchTemplateId": template.id, "LaunchTemplateName": template.name, "Version": template.version,
    })
}

fn tag_values(group: &Group) -> Vec<Value> {
    let value = |(key, tag): (&String, &super::group::Tag)| {
        json!({
            "ResourceId": group.name,
            "ResourceType": "auto-scaling-group",
            "Key": key,
            "Value": tag.value,
            "PropagateAtLaunch": tag.propagate,
        })
    };
    group.tags.iter().map(value).collect()
}

fn has_tag(group: &Group, filter: &str, values: &[String]) -> bool {
    group.tags.iter().any(|(key, tag)| match filter {
        "tag-key" => values.contains(key),
        "tag-value" => values.contains(&tag.value),
        _ => filter.strip_prefix("tag:") == Some(key) && values.contains(&tag.value),
    })
}

fn read_filters(params: &Params) -> Result<Vec<(String, Vec<String>)>, ApiError> {
    let read = |filter: Params| Ok((filter.required("Name")?.to_owned(), filter.texts("Values")));
    params.structures("Filters").into_iter().map(read).collect()
}

fn unknown_filter(name: &str, known: &str) -> ApiError {
    ApiError::validation(format!("Filter type {name} is not correct. Allowed Filter types are: {known}"))
}

struct ActivityFilters {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    status: Vec<String>,
}

impl ActivityFilters {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let mut filters = Self { from: None, to: None, status: Vec::new() };
        for (name, values) in read_filters(params)? {
            let time = || {
                let text = values.first().map(String::as_str).unwrap_or_default();
                text.parse::<Timestamp>().map_err(|_| ApiError::validation(format!("{name}: {text} is not a time")))
            };
            match name.as_str() {
                "StartTimeLowerBound" => filters.from = Some(time()?),
                "StartTimeUpperBound" => filters.to = Some(time()?),
                "Status" => filters.status = values,
                other => return Err(unknown_filter(other, "StartTimeLowerBound, StartTimeUpperBound, Status")),
            }
        }
        Ok(filters)
    }

    fn fit(&self, started: Timestamp, status: &str) -> bool {
        self.from.is_none_or(|from| started >= from)
            && self.to.is_none_or(|to| started <= to)
            && (self.status.is_empty() || self.status.iter().any(|wanted| wanted == status))
    }
}

/// Pages of a list that may change between them: a token names the last item that was shown.
struct Paging {
    size: usize,
    after: Option<String>,
}

impl Paging {
    fn read(params: &Params, default: u32, at_most: u32) -> Result<Self, ApiError> {
        let size = params.number("MaxRecords")?.unwrap_or(default);
        let given = size.to_string();
        if size > at_most {
            let constraint = format!("Member must have value less than or equal to {at_most}");
            return Err(ApiError::constraint(Some(&given), "MaxRecords", &constraint));
        }
        if size == 0 {
            let constraint = "Member must have value greater than or equal to 1";
            return Err(ApiError::constraint(Some(&given), "MaxRecords", constraint));
        }
        let after = params.text("NextToken").filter(|token| !token.is_empty()).map(str::to_owned);
        Ok(Self { size: size as usize, after })
    }

    fn page<T>(self, items: Vec<(String, T)>) -> Result<(Vec<T>, Option<String>), ApiError> {
        let start = match self.after {
            None => 0,
            Some(token) => match items.iter().position(|(key, _)| *key == token) {
                Some(last) => last + 1,
                None => {
                    return Err(ApiError::new("InvalidNextToken", format!("The token '{token}' is invalid.")));
                }
            },
        };
        let more = items.len() > start + self.size;
        let (keys, page): (Vec<_>, Vec<_>) = items.into_iter().skip(start).take(self.size).unzip();
        Ok((page, if more { keys.into_iter().next_back() } else { None }))
    }
}
