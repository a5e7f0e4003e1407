//! What API groups say of themselves, to `kubectl` and to API servers.

use axum::Router;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde_json::{Value, json};

use super::{Shared, answer};

/// API servers ask for all at once, and take what is neither that nor refused for an error.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// An API group of one version.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) resources: Vec<Resource>,
}

pub(super) struct Resource {
    /// With its subresource, where it is one: `pods/gpu_busy_ratio`.
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    pub(super) verbs: &'static [&'static str],
}

pub(super) fn routes(groups: &[Group]) -> Router<Shared> {
    let list: Vec<Value> = groups.iter().map(Group::json).collect();
    let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list});
    let items: Vec<Value> = groups.iter().map(Group::aggregated).collect();
    let aggregated = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let all = get(async move |headers: HeaderMap| -> Response {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match accept.contains(AGGREGATED) {
            true => ([(header::CONTENT_TYPE, AGGREGATED)], aggregated.to_string()).into_response(),
            false => answer(&list),
        }
    });
    groups.iter().fold(Router::new().route("/apis", all), |router, group| {
        let Group { name, version, .. } = group;
        router
            .route(&format!("/apis/{name}"), always(group.json()))
            .route(&format!("/apis/{name}/{version}"), always(group.list()))
    })
}

fn always(value: Value) -> MethodRouter<Shared> {
    get(async move || answer(&value))
}

impl Group {
    fn json(&self) -> Value {
        let version = json!({"groupVersion": format!("{}/{}", self.name, self.version), "version": self.version});
        json!({
            "kind": "APIGroup", "apiVersion": "v1", "name": self.name, "versions": [version], "preferredVersion": version,
        })
    }

    fn list(&self) -> Value {
        let resource = |Resource { name, kind, namespaced, verbs }: &Resource| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs});
        let resources: Vec<Value> = self.resources.iter().map(resource).collect();
        let version = format!("{}/{}", self.name, self.version);
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
    }

    /// Subresources stand below a resource, which is there for that alone where it has no verbs.
    fn aggregated(&self) -> Value {
        let mut resources: Vec<Value> = Vec::new();
        for Resource { name, kind, namespaced, verbs } in &self.resources {
            let kind = json!({"group": self.name, "version": self.version, "kind": kind});
            let scope = if *namespaced { "Namespaced" } else { "Cluster" };
            let Some((parent, subresource)) = name.split_once('/') else {
                resources.push(json!({
                    "resource": name, "responseKind": kind, "scope": scope, "singularResource": "", "verbs": verbs,
                }));
                continue;
            };
            let position = resources.iter().position(|resource| resource["resource"] == parent).unwrap_or_else(|| {
                let nothing = json!({"group": "", "version": "", "kind": ""});
                let parent = json!({
                    "resource": parent, "responseKind": nothing, "scope": scope, "singularResource": "", "verbs": null,
                    "subresources": [],
                });
                resources.push(parent);
                resources.len() - 1
            });
            let subresource = json!({"subresource": subresource, "responseKind": kind, "verbs": verbs});
            resources[position]["subresources"].as_array_mut().expect("made so above").push(subresource);
        }
        let version = json!({"version": self.version, "resources": resources, "freshness": "Current"});
        json!({"metadata": {"name": self.name}, "versions": [version]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subresources_are_told_of_below_their_resource() {
        let resource =
            |name: &str| Resource { name: name.into(), kind: "MetricValueList", namespaced: true, verbs: &["get"] };
        let resources = ["pods/a", "pods/b", "rays/c"].map(resource).into();
        let group = Group { name: "g", version: "v1", resources };
        let aggregated = group.aggregated();
        let of = |index: usize| {
            let resource = &aggregated["versions"][0]["resources"][index];
            let names = resource["subresources"].as_array().unwrap().iter().map(|it| it["subresource"].clone());
            (resource["resource"].clone(), names.collect::<Vec<_>>())
        };
        assert_eq!([of(0), of(1)], [("pods".into(), vec!["a".into(), "b".into()]), ("rays".into(), vec!["c".into()])]);
        assert_eq!(group.list()["resources"][1]["name"], "pods/b");
    }
}
