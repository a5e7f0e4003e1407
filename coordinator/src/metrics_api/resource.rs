//! The objects of `metrics.k8s.io/v1beta1`: NodeMetrics and PodMetrics, alone, in lists, and as tables for `kubectl get`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebb_core::time::Instant;
use ebb_core::usage::{Amount, Listed, PodUsage, Sample, Usages};
use serde_json::{Value, json};

use super::selector::Narrowing;
use super::{Shared, answer, failure, quantity};

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "metrics.k8s.io/v1beta1";

pub(super) fn routes() -> Router<Shared> {
    let below = |rest: &str| format!("/apis/{VERSION}{rest}");
    Router::new()
        .route("/apis", get(groups))
        .route(&format!("/apis/{GROUP}"), get(async || answer(&group())))
        .route(&format!("/apis/{VERSION}"), get(async || answer(&resources())))
        .route(&below("/nodes"), get(nodes))
        .route(&below("/nodes/{name}"), get(node))
        .route(&below("/pods"), get(pods))
        .route(&below("/namespaces/{namespace}/pods"), get(pods))
        .route(&below("/namespaces/{namespace}/pods/{name}"), get(pod))
}

fn group() -> Value {
    let version = json!({"groupVersion": VERSION, "version": "v1beta1"});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

/// Name, kind, and whether in namespaces.
const RESOURCES: [(&str, &str, bool); 2] = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];
const VERBS: [&str; 2] = ["get", "list"];

fn resources() -> Value {
    let resource = |(name, kind, namespaced): (&str, &str, bool)| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": VERBS});
    let resources = RESOURCES.map(resource);
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": resources})
}

/// API servers ask for all at once (`apidiscovery.k8s.io/v2`), and take what is neither that nor refused for an error.
async fn groups(headers: HeaderMap) -> Response {
    const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accept.contains(DISCOVERY) {
        return answer(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]}));
    }
    let resource = |(name, kind, namespaced): (&str, &str, bool)| {
        let kind = json!({"group": GROUP, "version": "v1beta1", "kind": kind});
        let scope = if namespaced { "Namespaced" } else { "Cluster" };
        json!({"resource": name, "responseKind": kind, "scope": scope, "singularResource": "", "verbs": VERBS})
    };
    let version = json!({"version": "v1beta1", "resources": RESOURCES.map(resource), "freshness": "Current"});
    let group = json!({"metadata": {"name": GROUP}, "versions": [version]});
    let all = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [group],
    });
    ([(header::CONTENT_TYPE, DISCOVERY)], all.to_string()).into_response()
}

async fn nodes(State(shared): State<Shared>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    list(&shared, &headers, query, "NodeMetricsList", |usages, now| usages.nodes(now).map(Item::of_node).collect())
}

/// Of one namespace, or of all.
async fn pods(
    State(shared): State<Shared>,
    namespace: Option<Path<String>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let namespace = namespace.as_ref().map(|Path(namespace)| namespace.as_str());
    list(&shared, &headers, query, "PodMetricsList", |usages, now| {
        usages.pods(now, namespace).map(Item::of_pod).collect()
    })
}

async fn node(State(shared): State<Shared>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let now = shared.clock.now();
    let found =
        shared.known.read(|usages| usages.node(now, &name).map(|node| show(&Item::of_node(node), now, &headers)));
    found.unwrap_or_else(|| missing("nodemetrics", &name))
}

async fn pod(
    State(shared): State<Shared>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let now = shared.clock.now();
    let found = shared
        .known
        .read(|usages| usages.pod(now, &namespace, &name).map(|pod| show(&Item::of_pod(pod), now, &headers)));
    found.unwrap_or_else(|| missing("podmetrics", &format!("{namespace}/{name}")))
}

fn missing(resource: &str, name: &str) -> Response {
    let text = format!("{resource}.{GROUP} {name:?} not found: no agent has told of it lately");
    failure(StatusCode::NOT_FOUND, "NotFound", &text)
}

fn list(
    shared: &Shared,
    headers: &HeaderMap,
    query: Option<String>,
    kind: &str,
    items: impl for<'a> FnOnce(&'a Usages, Instant) -> Vec<Item<'a>>,
) -> Response {
    let narrowing = match Narrowing::of(query.as_deref().unwrap_or_default()) {
        Ok(narrowing) => narrowing,
        Err(text) => return failure(StatusCode::BAD_REQUEST, "BadRequest", &text),
    };
    let now = shared.clock.now();
    shared.known.read(|usages| {
        let mut items = items(usages, now);
        items.retain(|item| narrowing.matches(item.namespace, item.name, item.labels));
        if wants_table(headers) {
            return answer(&table(&items, now));
        }
        let items: Vec<Value> = items.iter().map(|item| item.json(now)).collect();
        answer(&json!({"kind": kind, "apiVersion": VERSION, "metadata": {}, "items": items}))
    })
}

fn show(item: &Item<'_>, now: Instant, headers: &HeaderMap) -> Response {
    if wants_table(headers) { answer(&table(std::slice::from_ref(item), now)) } else { answer(&item.json(now)) }
}

/// One NodeMetrics or PodMetrics.
struct Item<'a> {
    namespace: &'a str,
    name: &'a str,
    labels: &'a BTreeMap<String, String>,
    at: Instant,
    window: Duration,
    used: Used<'a>,
}

enum Used<'a> {
    Node(Amount),
    Pod(&'a PodUsage),
}

impl<'a> Item<'a> {
    fn of_node(Listed { namespace, name, labels, usage }: Listed<'a, Sample>) -> Self {
        Self { namespace, name, labels, at: usage.at, window: usage.window, used: Used::Node(usage.amount) }
    }

    fn of_pod(Listed { namespace, name, labels, usage }: Listed<'a, &'a PodUsage>) -> Self {
        Self { namespace, name, labels, at: usage.at, window: usage.window, used: Used::Pod(usage) }
    }

    fn metadata(&self, now: Instant) -> Value {
        let mut metadata = json!({"name": self.name, "creationTimestamp": seconds(now)});
        if !self.namespace.is_empty() {
            metadata["namespace"] = self.namespace.into();
        }
        if !self.labels.is_empty() {
            metadata["labels"] = json!(self.labels);
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

/// Times of the API have no fraction.
fn seconds(at: Instant) -> String {
    Instant::from_millis(at.as_millis() / 1000 * 1000).to_string().replace(".000Z", "Z")
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

fn table(items: &[Item<'_>], now: Instant) -> Value {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let columns = [
        column("Name", "name", "Name of the node or pod"),
        column("CPU", "quantity", "CPUs used, the mean over the window"),
        column("Memory", "quantity", "Working set at the end of the window"),
        column("Window", "duration", "Time over which it was measured"),
    ];
    let row = |item: &Item<'_>| {
        let total = item.total();
        let object =
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item.metadata(now)});
        let (cpu, memory) = (quantity::cpu(total.cpu_nanocores), quantity::memory(total.memory_bytes));
        json!({"cells": [item.name, cpu, memory, window(item.window)], "object": object})
    };
    let rows: Vec<Value> = items.iter().map(row).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_shown_as_the_api_has_it() {
        let amount = |cpu_nanocores, memory_bytes| Amount { cpu_nanocores, memory_bytes };
        let containers = vec![("side".into(), amount(1_500, 1024)), ("work".into(), amount(250_000_000, 3 << 20))];
        let at = Instant::from_millis(1_795_514_400_700);
        let usage = PodUsage { uid: "u".into(), at, window: Duration::from_millis(9_500), containers };
        let labels = BTreeMap::from([("app".to_owned(), "ray".to_owned())]);
        let item = Item::of_pod(Listed { namespace: "ml", name: "train-0", labels: &labels, usage: &usage });
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
        let table = table(&[item], now);
        assert_eq!(table["rows"][0]["cells"], json!(["train-0", "250001500n", "3073Ki", "9.5s"]));
        assert_eq!(table["rows"][0]["object"]["metadata"], expected["metadata"]);
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
