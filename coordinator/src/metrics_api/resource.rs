//! The objects of `metrics.k8s.io/v1beta1`: NodeMetrics and PodMetrics, alone, in lists, and as tables for `kubectl get`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::routing::get;
use ebb_core::time::Instant;
use ebb_core::usage::{Amount, Labels, Listed, PodUsage, Sample, Usages};
use serde_json::{Value, json};

use super::discovery::{Group, Resource};
use super::selector::Narrowing;
use super::{Shared, answer, bad_request, list, not_found, quantity, seconds};

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "metrics.k8s.io/v1beta1";

pub(super) fn group() -> Group {
    let resource = |(name, kind, namespaced): (&str, &'static str, bool)| Resource {
        name: name.to_owned(),
        kind,
        namespaced,
        verbs: &["get", "list"],
    };
    let resources = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)].map(resource).into();
    Group { name: GROUP, version: "v1beta1", resources }
}

pub(super) fn routes() -> Router<Shared> {
    let below = |rest: &str| format!("/apis/{VERSION}{rest}");
    Router::new()
        .route(&below("/nodes"), get(nodes))
        .route(&below("/nodes/{name}"), get(node))
        .route(&below("/pods"), get(pods))
        .route(&below("/namespaces/{namespace}/pods"), get(pods))
        .route(&below("/namespaces/{namespace}/pods/{name}"), get(pod))
}

async fn nodes(State(shared): State<Shared>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    show_list(&shared, &headers, query, "NodeMetricsList", |usages, now| usages.nodes(now).map(Item::of_node).collect())
}

/// Of one namespace, or of all.
async fn pods(
    State(shared): State<Shared>,
    namespace: Option<Path<String>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let namespace = namespace.as_ref().map(|Path(namespace)| namespace.as_str());
    show_list(&shared, &headers, query, "PodMetricsList", |usages, now| {
        usages.pods(now, namespace).map(Item::of_pod).collect()
    })
}

async fn node(State(shared): State<Shared>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let now = shared.clock.now();
    match shared.known.read(|usages| usages.node(now, &name)) {
        Some(node) => show(&Item::of_node(node), now, &headers),
        None => missing("nodemetrics", &name),
    }
}

async fn pod(
    State(shared): State<Shared>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let now = shared.clock.now();
    match shared.known.read(|usages| usages.pod(now, &namespace, &name)) {
        Some(pod) => show(&Item::of_pod(pod), now, &headers),
        None => missing("podmetrics", &format!("{namespace}/{name}")),
    }
}

fn missing(resource: &str, name: &str) -> Response {
    not_found(&format!("{resource}.{GROUP} {name:?} not found: no agent has told of it lately"))
}

fn show_list(
    shared: &Shared,
    headers: &HeaderMap,
    query: Option<String>,
    kind: &str,
    items: impl FnOnce(&Usages, Instant) -> Vec<Item>,
) -> Response {
    let narrowing = match Narrowing::of(query.as_deref().unwrap_or_default()) {
        Ok(narrowing) => narrowing,
        Err(text) => return bad_request(&text),
    };
    let now = shared.clock.now();
    // Agents' words wait for as long as this takes; for the writing they need not.
    let mut items = shared.known.read(|usages| items(usages, now));
    items.retain(|item| narrowing.matches(&item.namespace, &item.name, &item.labels));
    if wants_table(headers) {
        return show_table(&items, now);
    }
    answer(&list::list(kind, VERSION, &items, |item| item.json(now)))
}

fn show(item: &Item, now: Instant, headers: &HeaderMap) -> Response {
    if wants_table(headers) { show_table(std::slice::from_ref(item), now) } else { answer(&item.json(now)) }
}

/// One NodeMetrics or PodMetrics.
struct Item {
    namespace: Arc<str>,
    name: Arc<str>,
    labels: Arc<Labels>,
    at: Instant,
    window: Duration,
    used: Used,
}

enum Used {
    Node(Amount),
    Pod(Arc<PodUsage>),
}

impl Item {
    fn of_node(Listed { namespace, name, labels, usage }: Listed<Sample>) -> Self {
        Self { namespace, name, labels, at: usage.at, window: usage.window, used: Used::Node(usage.amount) }
    }

    fn of_pod(Listed { namespace, name, labels, usage }: Listed<Arc<PodUsage>>) -> Self {
        Self { namespace, name, labels, at: usage.at, window: usage.window, used: Used::Pod(usage) }
    }

    fn metadata(&self, now: Instant) -> Value {
        let mut metadata = json!({"name": &*self.name, "creationTimestamp": seconds(now)});
        if !self.namespace.is_empty() {
            metadata["namespace"] = json!(&*self.namespace);
        }
        if !self.labels.is_empty() {
            metadata["labels"] = json!(&*self.labels);
        }
        metadata
    }

    fn json(&self, now: Instant) -> Value {
        let mut value = json!({
            "apiVersion": VERSION,
            "metadata": self.metadata(now),
            "timestamp": seconds(self.at),
            "window": window(self.window),
        });
        match &self.used {
            Used::Node(amount) => {
                value["kind"] = "NodeMetrics".into();
                value["usage"] = usage(*amount);
            }
            Used::Pod(pod) => {
                let containers =
                    pod.containers.iter().map(|(name, amount)| json!({"name": name, "usage": usage(*amount)}));
                value["kind"] = "PodMetrics".into();
                value["containers"] = containers.collect();
            }
        }
        value
    }

    fn row(&self, now: Instant) -> Value {
        let total = self.total();
        let object =
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": self.metadata(now)});
        let (cpu, memory) = (quantity::cpu(total.cpu_nanocores), quantity::memory(total.memory_bytes));
        json!({"cells": [&*self.name, cpu, memory, window(self.window)], "object": object})
    }

    fn total(&self) -> Amount {
        let sum = |sum: Amount, (_, amount): &(String, Amount)| Amount {
            cpu_nanocores: sum.cpu_nanocores.saturating_add(amount.cpu_nanocores),
            memory_bytes: sum.memory_bytes.saturating_add(amount.memory_bytes),
        };
        match &self.used {
            Used::Node(amount) => *amount,
            Used::Pod(pod) => pod.containers.iter().fold(Amount::default(), sum),
        }
    }
}

fn usage(amount: Amount) -> Value {
    json!({"cpu": quantity::cpu(amount.cpu_nanocores), "memory": quantity::memory(amount.memory_bytes)})
}

/// As Go writes a duration.
fn window(window: Duration) -> String {
    format!("{}s", window.as_secs_f64())
}

/// What `kubectl get` asks for, with what it takes instead after that.
fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = accept.split(',').next().unwrap_or_default();
    first.split(';').any(|part| part.trim() == "as=Table")
}

fn show_table(items: &[Item], now: Instant) -> Response {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let columns = [
        column("Name", "name", "Name of the node or pod"),
        column("CPU", "quantity", "CPUs used, the mean over the window"),
        column("Memory", "quantity", "Working set at the end of the window"),
        column("Window", "duration", "Time over which it was measured"),
    ];
    answer(&list::table(&columns, items, |item| item.row(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_shown_as_the_api_has_it() {
        let amount = |cpu_nanocores, memory_bytes| Amount { cpu_nanocores, memory_bytes };
        let containers = vec![("side".into(), amount(1_500, 1024)), ("work".into(), amount(250_000_000, 3 << 20))];
        let at = Instant::from_millis(1_795_514_400_700);
        let window = Duration::from_millis(9_500);
        let usage = Arc::new(PodUsage { uid: "u".into(), at, window, containers, signals: None });
        let labels = Arc::new(Labels::from([("app".to_owned(), "ray".to_owned())]));
        let item = Item::of_pod(Listed { namespace: "ml".into(), name: "train-0".into(), labels, usage });
        let now = Instant::from_millis(1_795_514_403_100);
        let expected = json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {
                "name": "train-0", "namespace": "ml", "labels": {"app": "ray"},
                "creationTimestamp": "2026-11-24T10:00:03Z",
            },
            "timestamp": "2026-11-24T10:00:00Z", "window": "9.5s",
            "containers": [
                {"name": "side", "usage": {"cpu": "1500n", "memory": "1Ki"}},
                {"name": "work", "usage": {"cpu": "250m", "memory": "3Mi"}},
            ],
        });
        assert_eq!(item.json(now), expected);
        let row = item.row(now);
        assert_eq!(row["cells"], json!(["train-0", "250001500n", "3073Ki", "9.5s"]));
        assert_eq!(row["object"]["metadata"], expected["metadata"]);
    }

    #[test]
    fn a_table_is_shown_only_to_whom_asks_for_it_first() {
        let wants = |accept: &'static str| {
            wants_table(&HeaderMap::from_iter([(header::ACCEPT, axum::http::HeaderValue::from_static(accept))]))
        };
        assert!(wants("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"));
        assert!(!wants("application/json, */*"));
        assert!(!wants("application/json,application/json;as=Table;v=v1;g=meta.k8s.io"));
    }
}
