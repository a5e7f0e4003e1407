//! The AWS side of a lab: the groups asked for, handed to `xtask/lab/fake_aws.py`, which plays AWS and boots the nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{Lab, control_plane, daemon};
use crate::process;

/// Nodes in this region are called ip-10-0-x-y.us-west-2.compute.internal; us-east-1 has names of its own kind.
pub(super) const REGION: &str = "us-west-2";

/// One `--group`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Group {
    name: String,
    min: u32,
    max: u32,
    desired: u32,
    #[serde(rename = "type")]
    instance_type: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    zone: String,
}

#[derive(Clone, Debug, Serialize)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

/// Starts the fake and returns when its groups exist. Their nodes come when their instances have booted.
pub(super) fn start(lab: &Lab, port: u16, python: &Path, groups: &[Group], boot_delay: Duration) -> Result<()> {
    let config = lab.dir.join("conf/fake-aws.json");
    let pki = lab.dir.join("pki");
    let text = json!({
        "port": port,
        "region": REGION,
        "log": lab.aws_log,
        "groups": groups,
        "boot_delay_ms": boot_delay.as_millis(),
        "server": lab.server,
        "ca_file": lab.ca_file,
        "cert_file": pki.join("cloud.crt"),
        "key_file": pki.join("cloud.key"),
    });
    fs::write(&config, text.to_string()).context("write the configuration of the fake AWS")?;
    let script = process::root().join("xtask/lab/fake_aws.py");
    daemon::start(&lab.dir, "fake-aws", Command::new(python).arg(script).arg(config))?;
    daemon::wait_ready(&lab.dir, "fake-aws", || {
        control_plane::http_get(port, "/_lab/asg").is_ok_and(|status| status == 200)
    })
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut name = None;
        let (mut min, mut max, mut desired) = (0, 10, None);
        let mut instance_type = "m5.xlarge".to_owned();
        let mut labels = BTreeMap::new();
        let mut taints = Vec::new();
        let mut zone = "a".to_owned();
        for word in text.split(',') {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value"))?;
            let number = || value.parse::<u32>().map_err(|_| format!("{key}={value}: not a number"));
            match key {
                "desired" => desired = Some(number()?),
                "label" => {
                    let (key, value) = value.split_once('=').ok_or_else(|| format!("label {value:?}: write k=v"))?;
                    labels.insert(key.to_owned(), value.to_owned());
                }
                "max" => max = number()?,
                "min" => min = number()?,
                "name" => name = Some(value.to_owned()),
                "taint" => taints.push(value.parse()?),
                "type" => instance_type = value.to_owned(),
                "zone" => zone = value.to_owned(),
                _ => return Err(format!("{key:?}: use name, min, max, desired, type, label, taint or zone")),
            }
        }
        let name = name.ok_or("a group needs name=…")?;
        let desired = desired.unwrap_or(min);
        if !(min <= desired && desired <= max) {
            return Err(format!("min {min} ≤ desired {desired} ≤ max {max} does not hold"));
        }
        Ok(Self { name, min, max, desired, instance_type, labels, taints, zone })
    }
}

impl FromStr for Taint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pair, effect) = text.split_once(':').ok_or_else(|| format!("taint {text:?}: write k=v:Effect"))?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_needs_no_more_than_a_name() {
        let group: Group = "name=cpu".parse().unwrap();
        assert_eq!((group.min, group.max, group.desired), (0, 10, 0));
        assert_eq!(group.instance_type, "m5.xlarge");
    }

    #[test]
    fn group_takes_labels_and_taints_with_slashes_and_empty_values() {
        let group: Group = "name=gpu,min=1,label=ebb.dev/pool=gpu,taint=nvidia.com/gpu=:NoSchedule".parse().unwrap();
        assert_eq!(group.desired, 1);
        assert_eq!(group.labels["ebb.dev/pool"], "gpu");
        assert_eq!(group.taints[0].key, "nvidia.com/gpu");
        assert_eq!(group.taints[0].effect, "NoSchedule");
    }

    #[test]
    fn group_outside_its_own_bounds_is_refused() {
        assert!("name=cpu,max=2,desired=3".parse::<Group>().is_err());
        assert!("min=2".parse::<Group>().is_err());
        assert!("name=cpu,size=2".parse::<Group>().is_err());
    }
}
