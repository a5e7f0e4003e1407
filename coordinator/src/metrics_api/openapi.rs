//! What `kubectl explain` shows of `metrics.k8s.io`, as OpenAPI 3. Version 2 is for clients older than Kubernetes 1.24, and not
//! there.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use super::{MetricsApi, answer, not_found};

const PATH: &str = "apis/metrics.k8s.io/v1beta1";
const NODE: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics";
const POD: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics";
const CONTAINER: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics";

/// Anybody may read it, as it stands in our source; the API server asks for it as a user that may do nothing.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(apis: &[MetricsApi]) -> Router<S> {
    let document = document();
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    // By the hash clients know whether what they have is still true.
    let url = format!("/openapi/v3/{PATH}?hash={:016X}", hasher.finish());
    let known = apis.contains(&MetricsApi::Resource);
    let paths = if known { json!({PATH: {"serverRelativeURL": url}}) } else { json!({}) };
    let root = json!({"paths": paths});
    let router = Router::new()
        .route("/openapi/v2", get(async || not_found("OpenAPI 2 is not served here")))
        .route("/openapi/v3", get(async move || answer(&root)));
    if known { router.route(&format!("/openapi/v3/{PATH}"), get(async move || answer(&document))) } else { router }
}

fn document() -> Value {
    let usage = json!({
        "type": "object",
        "description": "cpu: the mean over the window. memory: the working set at its end.",
        "additionalProperties": {"type": "string", "description": "A quantity."},
    });
    let containers = json!({
        "type": "array",
        "description": "All containers that run, by name.",
        "items": {"allOf": [reference(CONTAINER)], "default": {}},
    });
    let container = json!({
        "type": "object",
        "description": "What a container used.",
        "required": ["name", "usage"],
        "properties": {"name": {"type": "string", "description": "The container's name in the pod."}, "usage": usage},
    });
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Ebb", "version": "v1beta1"},
        "paths": {
            "/apis/metrics.k8s.io/v1beta1/nodes": path("NodeMetrics", "list", NODE),
            "/apis/metrics.k8s.io/v1beta1/nodes/{name}": path("NodeMetrics", "get", NODE),
            "/apis/metrics.k8s.io/v1beta1/pods": path("PodMetrics", "list", POD),
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods": path("PodMetrics", "list", POD),
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{name}": path("PodMetrics", "get", POD),
        },
        "components": {"schemas": {
            NODE: kind("NodeMetrics", "What a node used over a window of time.", "usage", &usage),
            POD: kind("PodMetrics", "What a pod used over a window of time.", "containers", &containers),
            CONTAINER: container,
        }},
    })
}

/// `verb`: a list's items are told of as if each were alone.
fn path(kind: &str, verb: &str, schema: &str) -> Value {
    let content = json!({"application/json": {"schema": reference(schema)}});
    json!({"get": {
        "description": format!("{verb} {kind}"),
        "responses": {"200": {"description": "OK", "content": content}},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": group_version_kind(kind),
    }})
}

fn kind(kind: &str, description: &str, own: &str, schema: &Value) -> Value {
    let text = |description| json!({"type": "string", "description": description});
    let mut properties = json!({
        "apiVersion": text("The version of the API."),
        "kind": text("The object's kind."),
        "metadata": {"type": "object", "description": "Name, namespace and labels, as of the object that is measured."},
        "timestamp": {
            "type": "string", "format": "date-time", "description": "The window's end, by the node's clock.",
        },
        "window": text("How long the window is, as in 10s."),
    });
    properties[own] = schema.clone();
    json!({
        "type": "object",
        "description": description,
        "required": ["timestamp", "window", own],
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(kind)],
    })
}

fn group_version_kind(kind: &str) -> Value {
    json!({"group": "metrics.k8s.io", "version": "v1beta1", "kind": kind})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_looks_for_is_found() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            let kind = &item["get"]["x-kubernetes-group-version-kind"];
            let explains = |schema: &&Value| schema["x-kubernetes-group-version-kind"][0] == *kind;
            assert_eq!(schemas.values().filter(explains).count(), 1, "{path}");
        }
        let text = document.to_string();
        let references = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next());
        assert!(references.into_iter().all(|name| schemas.contains_key(name)), "{text}");
    }
}
