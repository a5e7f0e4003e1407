//! What a fake starts with: the groups asked for, made through its own API.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::Deserialize;

use crate::faults::Market;
use crate::instance_types;
use crate::query::Params;
use crate::region::Region;
use crate::service::{Service, Timing};

/// The prefix of the tags that tell an autoscaler about the nodes of a group that has none.
const TEMPLATE_TAG: &str = "k8s.io/cluster-autoscaler/node-template";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of loopback.
    pub port: u16,
    pub region: String,
    /// Gets a line for each call.
    pub log: PathBuf,
    #[serde(default)]
    pub groups: Vec<GroupConfig>,
    #[serde(default)]
    pub timing: Timing,
    /// From the launch of an instance to its Node.
    #[serde(default)]
    pub boot_delay_ms: u64,
    /// The cluster whose Nodes the instances become; none without it.
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    /// More than one: a mixed instances policy, with the first preferred.
    pub types: Vec<String>,
    /// Letters of the region's zones.
    pub zones: Vec<String>,
    #[serde(default = "on_demand")]
    pub market: Market,
    /// Its Nodes carry these.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub taints: Vec<Taint>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

fn on_demand() -> Market {
    Market::OnDemand
}

impl Config {
    pub(crate) fn service(&self, now: Timestamp, seed: u64) -> anyhow::Result<Service> {
        let mut service = Service::new(&self.region, self.timing, seed);
        let region = Region::new(&self.region);
        for group in &self.groups {
            for name in &group.types {
                ensure!(
                    instance_types::find(name).is_some(),
                    "group {}: unknown instance type {name}: add it to tests/fake-aws/src/instance_types.csv",
                    group.name
                );
            }
            for letter in &group.zones {
                let zone = format!("{}{letter}", self.region);
                ensure!(region.has_zone(&zone), "group {}: {zone} is no zone: they are a to f", group.name);
            }
            for (action, params) in
                [("CreateLaunchTemplate", group.template()), ("CreateAutoScalingGroup", group.creation(&region))]
            {
                service.call(now, action, &params).with_context(|| format!("group {}: {action}", group.name))?;
            }
        }
        Ok(service)
    }
}

impl GroupConfig {
    fn template(&self) -> Params {
        let instance_type = self.types.first().map_or("", String::as_str);
        [("LaunchTemplateName", self.name.as_str()), ("LaunchTemplateData.InstanceType", instance_type)]
            .into_iter()
            .collect()
    }

    fn creation(&self, region: &Region) -> Params {
        let subnet = |letter: &String| region.subnet(&format!("{}{letter}", region.name()));
        let subnets: Vec<String> = self.zones.iter().map(subnet).collect();
        let mut pairs = vec![
            ("AutoScalingGroupName".to_owned(), self.name.clone()),
            ("MinSize".to_owned(), self.min.to_string()),
            ("MaxSize".to_owned(), self.max.to_string()),
            ("DesiredCapacity".to_owned(), self.desired.to_string()),
            ("VPCZoneIdentifier".to_owned(), subnets.join(",")),
        ];
        let template = ("LaunchTemplateName".to_owned(), self.name.clone());
        if self.types.len() == 1 && self.market == Market::OnDemand {
            pairs.push((format!("LaunchTemplate.{}", template.0), template.1));
        } else {
            let policy = "MixedInstancesPolicy";
            let share = if self.market == Market::OnDemand { "100" } else { "0" };
            pairs.push((format!("{policy}.LaunchTemplate.LaunchTemplateSpecification.{}", template.0), template.1));
            pairs.push((
                format!("{policy}.InstancesDistribution.OnDemandPercentageAboveBaseCapacity"),
                share.to_owned(),
            ));
            for (number, instance_type) in (1..).zip(&self.types) {
                let path = format!("{policy}.LaunchTemplate.Overrides.member.{number}.InstanceType");
                pairs.push((path, instance_type.clone()));
            }
        }
        for (number, (key, value)) in (1..).zip(self.tags()) {
            let path = format!("Tags.member.{number}");
            pairs.push((format!("{path}.Key"), key));
            pairs.push((format!("{path}.Value"), value));
            pairs.push((format!("{path}.PropagateAtLaunch"), "true".to_owned()));
        }
        pairs.into_iter().collect()
    }

    /// What an autoscaler reads to know the nodes of a group that has none, in the form that users already have.
    fn tags(&self) -> Vec<(String, String)> {
        let fixed = [
            ("k8s.io/cluster-autoscaler/enabled", "true"),
            ("k8s.io/cluster-autoscaler/lab", "owned"),
            ("kubernetes.io/cluster/lab", "owned"),
        ];
        let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let label = |(key, value): (&String, &String)| (format!("{TEMPLATE_TAG}/label/{key}"), value.clone());
        let taint = |taint: &Taint| {
            (format!("{TEMPLATE_TAG}/taint/{}", taint.key), format!("{}:{}", taint.value, taint.effect))
        };
        fixed.into_iter().chain(self.labels.iter().map(label)).chain(self.taints.iter().map(taint)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(group: serde_json::Value) -> Config {
        serde_json::from_value(json!({"port": 1, "region": "us-west-2", "log": "log", "groups": [group]})).unwrap()
    }

    #[test]
    fn groups_are_there_from_the_start_with_their_instances_and_tags() {
        let group = json!({"name": "gpu", "min": 0, "max": 3, "desired": 2, "types": ["g4dn.xlarge"],
                           "zones": ["a", "b"], "labels": {"pool": "gpu"},
                           "taints": [{"key": "nvidia.com/gpu", "value": "", "effect": "NoSchedule"}]});
        let mut service = config(group).service(Timestamp::UNIX_EPOCH, 1).unwrap();
        let groups = service.groups();
        let zones: Vec<_> = groups[0].instances.iter().map(|instance| instance.zone.as_str()).collect();
        assert_eq!(zones, ["us-west-2a", "us-west-2b"]);
        assert_eq!(groups[0].instances[0].state, "InService");
        assert_eq!(groups[0].instances[1].node, "ip-10-0-16-4.us-west-2.compute.internal");
        let told = service.call(Timestamp::UNIX_EPOCH, "DescribeTags", &Params::default()).unwrap();
        let taint = told["Tags"].as_array().unwrap().iter().find(|tag| tag["Value"] == ":NoSchedule").unwrap();
        assert_eq!(taint["Key"], "k8s.io/cluster-autoscaler/node-template/taint/nvidia.com/gpu");
    }

    #[test]
    fn spot_and_many_types_make_a_policy() {
        let group = json!({"name": "spot", "min": 0, "max": 3, "desired": 1, "types": ["m5.large", "m5.xlarge"],
                           "zones": ["a"], "market": "Spot"});
        let service = config(group).service(Timestamp::UNIX_EPOCH, 1).unwrap();
        let groups = service.groups();
        assert_eq!(
            (groups[0].instances[0].market, groups[0].instances[0].instance_type.as_str()),
            (Market::Spot, "m5.large")
        );
    }

    #[test]
    fn unknown_types_and_zones_are_said_by_name() {
        let check = |instance_type: &str, zone: &str, named: &str| {
            let group =
                json!({"name": "g", "min": 0, "max": 3, "desired": 0, "types": [instance_type], "zones": [zone]});
            let problem = config(group).service(Timestamp::UNIX_EPOCH, 1).err().unwrap().to_string();
            assert!(problem.contains(named), "{problem}");
        };
        check("x99.giant", "a", "x99.giant");
        check("m5.large", "z", "us-west-2z is no zone");
    }
}
