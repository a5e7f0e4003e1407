//! Whether a user may read what is asked for: the API server's own authorizers say so.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use super::front_proxy::User;
use crate::remembered::Remembered;

/// How long an answer is believed: what API servers use for those they aggregate.
const BELIEVED: Duration = Duration::from_secs(10);
/// Answers kept. An HPA asks as one user for one namespace.
const ANSWERS: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    Resource {
        group: String,
        version: String,
        namespace: String,
        resource: String,
        name: String,
        subresource: String,
    },
    /// Discovery.
    Path(String),
}

impl Asked {
    /// `/apis/GROUP/VERSION[/namespaces/NAMESPACE]/RESOURCE[/NAME[/SUBRESOURCE]]`
    pub(super) fn of(path: &str) -> Self {
        let part = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(part).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, namespace, rest) = match parts.as_slice() {
            ["apis", group, version, "namespaces", namespace, rest @ ..] if !rest.is_empty() => {
                (group, version, *namespace, rest)
            }
            ["apis", group, version, rest @ ..] => (group, version, "", rest),
            _ => return Self::Path(path.to_owned()),
        };
        let (resource, name, subresource) = match rest {
            [resource] => (*resource, "", ""),
            [resource, name] => (*resource, *name, ""),
            [resource, name, subresource] => (*resource, *name, *subresource),
            _ => return Self::Path(path.to_owned()),
        };
        let [group, version, namespace, resource, name, subresource] =
            [*group, *version, namespace, resource, name, subresource].map(str::to_owned);
        Self::Resource { group, version, namespace, resource, name, subresource }
    }
}

pub(super) struct Access {
    reviews: Api<SubjectAccessReview>,
    known: Remembered<(User, Asked), bool>,
}

impl Access {
    pub(super) fn new(client: Client) -> Self {
        Self { reviews: Api::all(client), known: Remembered::new(BELIEVED, ANSWERS) }
    }

    pub(super) async fn review(&self, user: &User, asked: &Asked) -> Result<bool, String> {
        let key = (user.clone(), asked.clone());
        if let Some(allowed) = self.known.recall(&key) {
            return Ok(allowed);
        }
        let review = SubjectAccessReview { spec: spec(user, asked), ..SubjectAccessReview::default() };
        let params = PostParams::default();
        let answer = timeout(TIMEOUT, self.reviews.create(&params, &review)).await.map_err(|_| "no reply in time")?;
        let allowed = answer.map_err(|error| error.to_string())?.status.is_some_and(|status| status.allowed);
        self.known.remember(key, allowed);
        Ok(allowed)
    }
}

fn spec(user: &User, asked: &Asked) -> SubjectAccessReviewSpec {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    match asked {
        Asked::Resource { group, version, namespace, resource, name, subresource } => {
            let some = |text: &String| (!text.is_empty()).then(|| text.clone());
            spec.resource_attributes = Some(ResourceAttributes {
                group: some(group),
                version: some(version),
                namespace: some(namespace),
                resource: some(resource),
                name: some(name),
                subresource: some(subresource),
                verb: Some(if name.is_empty() { "list" } else { "get" }.to_owned()),
                ..ResourceAttributes::default()
            });
        }
        Asked::Path(path) => {
            let (path, verb) = (Some(path.clone()), Some("get".to_owned()));
            spec.non_resource_attributes = Some(NonResourceAttributes { path, verb });
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_the_api_server_reads_it() {
        let resource = |namespace: &str, resource: &str, name: &str, subresource: &str| {
            let [group, version, namespace, resource, name, subresource] =
                ["metrics.k8s.io", "v1beta1", namespace, resource, name, subresource].map(str::to_owned);
            Asked::Resource { group, version, namespace, resource, name, subresource }
        };
        let check =
            |rest: &str, expected| assert_eq!(Asked::of(&format!("/apis/metrics.k8s.io/v1beta1{rest}")), expected);
        check("/nodes", resource("", "nodes", "", ""));
        check("/nodes/a", resource("", "nodes", "a", ""));
        check("/namespaces/ml/pods", resource("ml", "pods", "", ""));
        check("/namespaces/ml/pods/a", resource("ml", "pods", "a", ""));
        check("/namespaces/ml/pods/%2A/busy", resource("ml", "pods", "*", "busy"));
        check("", Asked::Path("/apis/metrics.k8s.io/v1beta1".into()));
        check("/a/b/c/d", Asked::Path("/apis/metrics.k8s.io/v1beta1/a/b/c/d".into()));
        assert_eq!(Asked::of("/apis"), Asked::Path("/apis".into()));
    }
}
