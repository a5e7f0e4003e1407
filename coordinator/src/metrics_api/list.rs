//! Lists and tables, written entry by entry: those of a large cluster would take hundreds of MiB as values.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

#[derive(Serialize)]
struct List<'a, E> {
    kind: &'a str,
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    metadata: Value,
    #[serde(rename = "columnDefinitions", skip_serializing_if = "<[Value]>::is_empty")]
    columns: &'a [Value],
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<E>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<E>,
}

struct Each<'a, T, F>(&'a [T], F);

impl<T, F: Fn(&T) -> Value> Serialize for Each<'_, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

pub(super) fn list<'a, T>(
    kind: &'a str,
    api_version: &'a str,
    items: &'a [T],
    json: impl Fn(&T) -> Value,
) -> impl Serialize {
    List { kind, api_version, metadata: json!({}), columns: &[], items: Some(Each(items, json)), rows: None }
}

pub(super) fn table<'a, T>(columns: &'a [Value], items: &'a [T], row: impl Fn(&T) -> Value) -> impl Serialize {
    let (kind, api_version) = ("Table", "meta.k8s.io/v1");
    List { kind, api_version, metadata: json!({}), columns, items: None, rows: Some(Each(items, row)) }
}
