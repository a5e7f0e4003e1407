//! The values of `custom.metrics.k8s.io/v1beta2`: how loaded pods are beyond CPU and memory, and how much waits in Ray
//! clusters. Version `v1beta1` says the same in other words; the HPA takes either.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use ebb_core::time::Instant;
use ebb_core::usage::{Listed, PodUsage, Signals};
use serde_json::{Value, json};

use super::discovery::{Group, Resource};
use super::selector::Narrowing;
use super::{Shared, answer, bad_request, list, not_found, quantity, seconds, unavailable};
use crate::driver::{self, Query};

const GROUP: &str = "custom.metrics.k8s.io";
const VERSION: &str = "custom.metrics.k8s.io/v1beta2";
const RAY_CLUSTERS: &str = "rayclusters.ray.io";
const RAY_WAITING: &str = "ray_waiting_requests";
/// In place of a name: all of the namespace.
const ALL: &str = "*";

/// A metric of pods.
struct PodMetric {
    name: &'static str,
    value: fn(&Signals) -> Option<String>,
    /// Not a mean over a window.
    is_momentary: bool,
}

const fn mean(name: &'static str, value: fn(&Signals) -> Option<String>) -> PodMetric {
    PodMetric { name, value, is_momentary: false }
}

const fn momentary(name: &'static str, value: fn(&Signals) -> Option<String>) -> PodMetric {
    PodMetric { name, value, is_momentary: true }
}

/// Base units, as Prometheus has them; the last two as HPAs have them that were written for dcgm-exporter, in percent and MiB.
const POD_METRICS: [PodMetric; 6] = [
    mean("gpu_busy_ratio", |signals| Some(quantity::thousandths(signals.gpu_busy?.get().into()))),
    momentary("gpu_memory_used_bytes", |signals| Some(quantity::memory(signals.gpu_memory_bytes?))),
    mean("cpu_run_queue_wait_ratio", |signals| Some(quantity::thousandths(signals.run_queue_wait?))),
    mean("memory_pressure_ratio", |signals| Some(quantity::thousandths(signals.memory_pressure?.get().into()))),
    mean("DCGM_FI_DEV_GPU_UTIL", |signals| Some(quantity::thousandths(u64::from(signals.gpu_busy?.get()) * 100))),
    momentary("DCGM_FI_DEV_FB_USED", |signals| Some((signals.gpu_memory_bytes? >> 20).to_string())),
];

pub(super) fn group() -> Group {
    let resource = |name| Resource { name, kind: "MetricValueList", namespaced: true, verbs: &["get"] };
    let pods = POD_METRICS.iter().map(|metric| format!("pods/{}", metric.name));
    let resources = pods.chain([format!("{RAY_CLUSTERS}/{RAY_WAITING}")]).map(resource);
    Group { name: GROUP, version: "v1beta2", resources: resources.collect() }
}

pub(super) fn routes() -> Router<Shared> {
    let of = |resource: &str| format!("/apis/{VERSION}/namespaces/{{namespace}}/{resource}/{{name}}/{{metric}}");
    Router::new().route(&of("pods"), get(pods)).route(&of(RAY_CLUSTERS), get(ray_clusters))
}

async fn pods(
    State(shared): State<Shared>,
    Path((namespace, name, metric)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let Some(metric) = POD_METRICS.iter().find(|known| known.name == metric) else {
        return not_found(&format!("pods have no metric {metric:?} here"));
    };
    let narrowing = match Narrowing::of(query.as_deref().unwrap_or_default()) {
        Ok(narrowing) => narrowing,
        Err(text) => return bad_request(&text),
    };
    let now = shared.clock.now();
    let listed: Vec<_> = shared.known.read(|usages| match &*name {
        ALL => usages.pods(now, Some(&namespace)).collect(),
        name => usages.pod(now, &namespace, name).into_iter().collect(),
    });
    let matching = listed.iter().filter(|pod| narrowing.matches(&pod.namespace, &pod.name, &pod.labels));
    let values: Vec<Value> = matching.filter_map(|pod| metric.of(pod)).collect();
    if values.is_empty() && name != ALL {
        let text =
            format!("pod {namespace}/{name} has no {}: it does not apply, or no agent has told it lately", metric.name);
        return not_found(&text);
    }
    show(&values)
}

impl PodMetric {
    fn of(&self, pod: &Listed<Arc<PodUsage>>) -> Option<Value> {
        let signals = pod.usage.signals.as_ref()?;
        let window = if self.is_momentary { 0 } else { signals.window.as_secs() };
        let described = described("Pod", "v1", &pod.namespace, &pod.name);
        Some(value(&described, self.name, pod.usage.at, window, &(self.value)(signals)?))
    }
}

async fn ray_clusters(
    State(shared): State<Shared>,
    Path((namespace, name, metric)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    if metric != RAY_WAITING {
        return not_found(&format!("Ray clusters have no metric {metric:?} here"));
    }
    let narrowing = match Narrowing::of(query.as_deref().unwrap_or_default()) {
        Ok(narrowing) => narrowing,
        Err(text) => return bad_request(&text),
    };
    let Some(waiting) = driver::ask(&shared.queries, Query::RayWaiting).await else {
        return unavailable("the coordinator does not say in time what waits in Ray clusters: ask again");
    };
    // Only names are known of RayClusters, by the coordinator's configuration.
    let nothing = std::collections::BTreeMap::new();
    let values = waiting.iter().filter_map(|(key, (at, waiting))| {
        let (of, cluster) = key.split_once('/')?;
        let is_meant = of == namespace && (name == ALL || cluster == name) && narrowing.matches(of, cluster, &nothing);
        let described = described("RayCluster", "ray.io/v1", of, cluster);
        is_meant.then(|| value(&described, RAY_WAITING, *at, 0, &waiting.to_string()))
    });
    let values: Vec<Value> = values.collect();
    if values.is_empty() && name != ALL {
        let text = format!(
            "Ray cluster {namespace}/{name} has no {RAY_WAITING}: it is not in the coordinator's configuration (ray), or its \
             head has not answered for five minutes"
        );
        return not_found(&text);
    }
    show(&values)
}

fn described(kind: &str, api_version: &str, namespace: &str, name: &str) -> Value {
    json!({"kind": kind, "apiVersion": api_version, "namespace": namespace, "name": name})
}

fn value(described: &Value, metric: &str, at: Instant, window_seconds: u64, value: &str) -> Value {
    json!({
        "describedObject": described, "metric": {"name": metric}, "timestamp": seconds(at), "windowSeconds": window_seconds,
        "value": value,
    })
}

fn show(values: &[Value]) -> Response {
    answer(&list::list("MetricValueList", VERSION, values, Value::clone))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_core::units::Permille;
    use ebb_core::usage::Labels;

    use super::*;

    fn pod(signals: Option<Signals>) -> Listed<Arc<PodUsage>> {
        let at = Instant::from_millis(1_795_514_400_700);
        let window = Duration::from_secs(5);
        let usage = PodUsage { uid: "u".into(), at, window, containers: Vec::new(), signals };
        let labels = Arc::new(Labels::new());
        Listed { namespace: "ml".into(), name: "train-0".into(), labels, usage: Arc::new(usage) }
    }

    fn values(signals: Option<Signals>) -> Vec<(&'static str, String)> {
        let value = |metric: &PodMetric| Some((metric.name, metric.of(&pod(signals))?["value"].as_str()?.to_owned()));
        POD_METRICS.iter().filter_map(value).collect()
    }

    #[test]
    fn a_value_is_shown_as_the_api_has_it() {
        let window = Duration::from_secs(10);
        let signals = Signals { window, gpu_busy: Permille::new(730), ..Signals::default() };
        let expected = json!({
            "describedObject": {"kind": "Pod", "apiVersion": "v1", "namespace": "ml", "name": "train-0"},
            "metric": {"name": "gpu_busy_ratio"}, "timestamp": "2026-11-24T10:00:00Z", "windowSeconds": 10, "value": "730m",
        });
        assert_eq!(POD_METRICS[0].of(&pod(Some(signals))), Some(expected));
    }

    #[test]
    fn each_metric_has_its_unit_and_what_is_missing_is_not_there() {
        assert_eq!(values(None), []);
        assert_eq!(values(Some(Signals::default())), []);
        let without_gpu =
            Signals { run_queue_wait: Some(1500), memory_pressure: Some(Permille::ZERO), ..Signals::default() };
        let expected = [("cpu_run_queue_wait_ratio", "1500m"), ("memory_pressure_ratio", "0")];
        assert_eq!(values(Some(without_gpu)), expected.map(|(name, value)| (name, value.to_owned())));
        let gpu = Signals { gpu_busy: Permille::new(735), gpu_memory_bytes: Some(3 << 30), ..Signals::default() };
        let expected = [
            ("gpu_busy_ratio", "735m"),
            ("gpu_memory_used_bytes", "3Gi"),
            ("DCGM_FI_DEV_GPU_UTIL", "73500m"),
            ("DCGM_FI_DEV_FB_USED", "3072"),
        ];
        assert_eq!(values(Some(gpu)), expected.map(|(name, value)| (name, value.to_owned())));
    }
}
