//! What a worker is like by the template of its group in a RayCluster: its pod, and what it brings to Ray, as Ray's own
//! autoscaler reads both.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use super::Amounts;
use crate::kubernetes::Pod;
use crate::resources::{NVIDIA_GPU, Resources};
use crate::units::parse_quantity_milli;

/// What KubeRay puts on each of its pods: the RayCluster's name, and the worker group's.
pub const CLUSTER_LABEL: &str = "ray.io/cluster";
pub const GROUP_LABEL: &str = "ray.io/group";

/// A worker of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Without KubeRay's labels.
    pub pod: Pod,
    pub resources: Amounts,
}

impl Template {
    /// `start_parameters` are `ray start`'s (`rayStartParams`), `resources` the group's own, which go before all else.
    pub fn new(
        template: &api::PodTemplateSpec,
        namespace: &str,
        start_parameters: &BTreeMap<String, String>,
        resources: &BTreeMap<String, String>,
    ) -> Self {
        // Ray runs in the first container.
        let container = template.spec.as_ref().and_then(|spec| spec.containers.first());
        let asked = container.and_then(|container| container.resources.clone()).unwrap_or_default();
        let (limits, requests) = (asked.limits.unwrap_or_default(), asked.requests.unwrap_or_default());
        let of_container = |name: &str| limits.get(name).or(requests.get(name)).and_then(number);
        let gpus = || limits.iter().filter(|(name, _)| name.ends_with("gpu")).find_map(|(_, amount)| number(amount));
        let parameter = |name: &str| start_parameters.get(name).and_then(|text| text.trim().parse::<f64>().ok());

        let mut amounts = Amounts::default();
        let counts = [
            ("CPU", parameter("num-cpus").or_else(|| of_container("cpu").map(f64::ceil))),
            ("GPU", parameter("num-gpus").or_else(gpus)),
            ("memory", parameter("memory").or_else(|| of_container("memory"))),
        ];
        let counts = counts.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), amount?)));
        let own = start_parameters.get("resources").map(|text| custom(text)).unwrap_or_default();
        let of_group =
            resources.iter().filter_map(|(name, amount)| Some((name.clone(), number(&Quantity(amount.clone()))?)));
        for (name, amount) in counts.chain(own).chain(of_group) {
            // What is no amount Ray refuses as well.
            let _ = amounts.set(&name, amount);
        }
        Self { pod: Pod::of_template(template, namespace), resources: amounts }
    }
}

impl Amounts {
    /// What `ray start` and KubeRay make of a pod where nobody says otherwise: whole cores, GPUs, bytes.
    pub fn of_requests(requests: &Resources) -> Self {
        let mut amounts = Self::default();
        let counts = [
            ("CPU", requests.amount("cpu").div_ceil(1000)),
            ("GPU", requests.amount(NVIDIA_GPU)),
            ("memory", requests.amount("memory")),
        ];
        for (name, amount) in counts {
            #[expect(clippy::cast_precision_loss, reason = "no pod asks for that much")]
            let set = amounts.set(name, amount as f64);
            debug_assert!(set, "{amount} {name}");
        }
        amounts
    }
}

fn number(quantity: &Quantity) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "Ray has it as a float as well")]
    let number = parse_quantity_milli(&quantity.0).ok().map(|milli| milli as f64 / 1000.0);
    number
}

/// JSON within quotes of a shell: `"{\"disk\": 2}"`.
fn custom(text: &str) -> BTreeMap<String, f64> {
    let json = text.trim().trim_matches(['"', '\'']).replace('\\', "");
    serde_json::from_str(&json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worker(
        container: serde_json::Value,
        start_parameters: &[(&str, &str)],
        resources: &[(&str, &str)],
    ) -> BTreeMap<String, f64> {
        let sidecar = json!({"name": "logs", "resources": {"requests": {"cpu": "100m"}}});
        let containers = [json!({"name": "ray", "resources": container}), sidecar];
        let template = json!({"metadata": {"labels": {"team": "a"}}, "spec": {"containers": containers}});
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let template = serde_json::from_value(template).unwrap();
        let Template { pod, resources } = Template::new(&template, "ml", &map(start_parameters), &map(resources));
        assert_eq!((pod.namespace.as_str(), pod.labels["team"].as_str()), ("ml", "a"));
        resources.0.iter().map(|(name, amount)| (name.to_owned(), amount as f64 / super::super::UNIT)).collect()
    }

    fn amounts(all: &[(&str, f64)]) -> BTreeMap<String, f64> {
        all.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect()
    }

    #[test]
    fn what_a_worker_brings_is_read_from_its_container() {
        let container = json!({
            "limits": {"cpu": "3500m", "memory": "4Gi", "nvidia.com/gpu": "2"},
            "requests": {"cpu": "1", "memory": "2Gi"},
        });
        let gib = f64::from(1 << 30);
        assert_eq!(worker(container, &[], &[]), amounts(&[("CPU", 4.0), ("GPU", 2.0), ("memory", 4.0 * gib)]));
        let requests = json!({"requests": {"cpu": "2"}});
        assert_eq!(worker(requests, &[], &[]), amounts(&[("CPU", 2.0)]));
    }

    #[test]
    fn start_parameters_go_before_the_container_and_the_groups_resources_before_both() {
        let container = json!({"limits": {"cpu": "4", "nvidia.com/gpu": "1"}});
        let own = [("num-cpus", "0"), ("num-gpus", "4"), ("resources", r#""{\"disk\": 2, \"rack\": 0.5}""#)];
        let expected = amounts(&[("CPU", 0.0), ("GPU", 4.0), ("disk", 2.0), ("rack", 0.5)]);
        // None of a kind is as good as not said.
        let expected = expected.into_iter().filter(|(_, amount)| *amount > 0.0).collect::<BTreeMap<_, _>>();
        let brought = |resources| {
            let mut brought = worker(container.clone(), &own, resources);
            brought.retain(|_, amount| *amount > 0.0);
            brought
        };
        assert_eq!(brought(&[]), expected);
        assert_eq!(brought(&[("CPU", "7")])["CPU"], 7.0);
    }

    #[test]
    fn nonsense_is_as_good_as_not_said() {
        let container = json!({"limits": {"cpu": "4"}});
        let nonsense = [("num-cpus", "many"), ("num-gpus", "-1"), ("resources", "disk=2")];
        assert_eq!(worker(container, &nonsense, &[("rack", "x")]), amounts(&[("CPU", 4.0)]));
    }
}
