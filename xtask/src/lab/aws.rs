//! The AWS side of a lab: the groups asked for, handed to `tests/fake-aws`, which plays AWS and boots the nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Lab, Up, control_plane, daemon};
use crate::process::{capture, root};

/// Nodes in this region are called ip-10-0-x-y.us-west-2.compute.internal; us-east-1 has names of its own kind.
pub(super) const REGION: &str = "us-west-2";

/// One `--group`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Group {
    name: String,
    min: u32,
    max: u32,
    desired: u32,
    types: Vec<String>,
    /// Letters of the region's.
    zones: Vec<String>,
    market: Market,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Market {
    OnDemand,
    Spot,
}

#[derive(Clone, Debug, Serialize)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

/// The fake's binary, built when it is not up to date.
pub(super) fn program() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "fake-aws", "--message-format", "json"]).current_dir(root());
    let messages = capture(cargo.stderr(Stdio::inherit()))?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executables.next().context("cargo built fake-aws and named no program")
}

/// Starts the fake and returns when its groups exist. Their nodes come when their instances have booted.
pub(super) fn start(lab: &Lab, port: u16, program: &Path, args: &Up) -> Result<()> {
    let config = lab.dir.join("conf/fake-aws.json");
    let text = json!({
        "port": port,
        "region": REGION,
        "log": lab.aws_log,
        "groups": args.groups,
        "timing": {"launch_ms": args.launch_delay.as_millis()},
        "boot_delay_ms": args.boot_delay.as_millis(),
        "kubeconfig": lab.dir.join("conf/cloud.kubeconfig"),
    });
    fs::write(&config, text.to_string()).context("write the configuration of the fake AWS")?;
    daemon::start(&lab.dir, "fake-aws", Command::new(program).arg(config))?;
    daemon::wait_ready(&lab.dir, "fake-aws", || {
        control_plane::http_get(port, "/_lab/asg").is_ok_and(|status| status == 200)
    })
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut name = None;
        let (mut min, mut max, mut desired) = (0, 10, None);
        let (mut types, mut zones) = (Vec::new(), Vec::new());
        let mut market = Market::OnDemand;
        let mut labels = BTreeMap::new();
        let mut taints = Vec::new();
        for word in text.split(',') {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value"))?;
            let number = || value.parse::<u32>().map_err(|_| format!("{key}={value}: not a number"));
            match key {
                "desired" => desired = Some(number()?),
                "label" => {
                    let (key, value) = value.split_once('=').ok_or_else(|| format!("label {value:?}: write k=v"))?;
                    labels.insert(key.to_owned(), value.to_owned());
                }
                "market" => {
                    market = match value {
                        "on-demand" => Market::OnDemand,
                        "spot" => Market::Spot,
                        _ => return Err(format!("market {value:?}: use on-demand or spot")),
                    }
                }
                "max" => max = number()?,
                "min" => min = number()?,
                "name" => name = Some(value.to_owned()),
                "taint" => taints.push(value.parse()?),
                "type" => types.push(value.to_owned()),
                "zone" => zones.push(value.to_owned()),
                _ => return Err(format!("{key:?}: use name, min, max, desired, type, zone, market, label or taint")),
            }
        }
        let name = name.ok_or("a group needs name=…")?;
        let desired = desired.unwrap_or(min);
        if !(min <= desired && desired <= max) {
            return Err(format!("min {min} ≤ desired {desired} ≤ max {max} does not hold"));
        }
        if types.is_empty() {
            types.push("m5.xlarge".to_owned());
        }
        if zones.is_empty() {
            zones.push("a".to_owned());
        }
        Ok(Self { name, min, max, desired, types, zones, market, labels, taints })
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
        assert_eq!((group.types, group.zones), (vec!["m5.xlarge".to_owned()], vec!["a".to_owned()]));
    }

    #[test]
    fn group_takes_several_types_and_zones_in_their_order() {
        let text = "name=mixed,type=m5.xlarge,type=m6i.xlarge,zone=b,zone=a,market=spot";
        let group: Group = text.parse().unwrap();
        assert_eq!((group.types.join(" "), group.zones.join(" ")), ("m5.xlarge m6i.xlarge".into(), "b a".into()));
        assert_eq!(group.market, Market::Spot);
        assert!("name=mixed,market=free".parse::<Group>().is_err());
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
