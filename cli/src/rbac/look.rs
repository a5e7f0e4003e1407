//! Finds out what a cluster gives, asking nothing that changes anything.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::findings::{Facts, Guards, Known, Version};
use super::rights::{ADMISSION, BEYOND, BROKER, COORDINATOR, IMPERSONATION, Right, Scope, WEBHOOK};
use super::trial;
use crate::kubernetes;

/// Questions asked of the API server at the same time.
const QUESTIONS: usize = 8;
const AGENT: &str = "ebb-agent";
const COORDINATORS: &str = "ebb-coordinator";

pub(super) async fn facts(args: &kubernetes::Args, namespace: &str) -> Result<Facts> {
    let client = args.client().await?;
    let agents: BTreeSet<Right> = IMPERSONATION.into_iter().chain(ADMISSION).chain(BEYOND).collect();
    let coordinators: BTreeSet<Right> = COORDINATOR.into_iter().chain(BROKER).chain([WEBHOOK]).collect();
    let agent = rights(&client, namespace, AGENT, agents).await;
    let acts_as_node = agent.as_ref().is_ok_and(|rights| rights.contains(&super::rights::ACT_AS_NODE));
    let (trial, node_restriction) = trial::run(args, &client, namespace, acts_as_node).await;
    Ok(Facts {
        version: version(&client).await,
        feature: feature(&client).await,
        policies_served: policies_served(&client).await,
        node_restriction,
        agent,
        coordinator: rights(&client, namespace, COORDINATORS, coordinators).await,
        guards: Guards {
            agent: is_bound(&client, "ebb-agent").await,
            agent_pods: is_bound(&client, "ebb-agent-pods").await,
            coordinator: is_bound(&client, "ebb-coordinator").await,
            evictions: webhook(&client).await,
        },
        trial,
    })
}

/// Why something is not known, in a few words.
pub(super) fn why(what: &str, error: &kube::Error) -> String {
    match error {
        error if kubernetes::is_forbidden(error) => format!("you may not {what}"),
        kube::Error::Api(status) => format!("tried to {what}: {}", status.message),
        error => format!("tried to {what}: {error}"),
    }
}

async fn version(client: &Client) -> Known<Version> {
    let info = client.apiserver_version().await.map_err(|error| why("read the version", &error))?;
    // As in `30+` on EKS.
    let digits: String = info.minor.chars().take_while(char::is_ascii_digit).collect();
    let minor = digits.parse().map_err(|_| format!("the API server calls its version {:?}", info.minor))?;
    Ok(Version { minor, text: info.git_version })
}

/// The API server counts its features among its metrics.
async fn feature(client: &Client) -> Known<bool> {
    let request = hyper::Request::get("/metrics").body(Vec::new()).map_err(|error| error.to_string())?;
    let text = client.request_text(request).await.map_err(|error| why("read the API server's /metrics", &error))?;
    is_on(&text, "ConstrainedImpersonation").map_or_else(
        // One that is not known is not there; one that counts no features says nothing.
        || {
            if text.contains("\nkubernetes_feature_enabled{") {
                Ok(false)
            } else {
                Err("its /metrics do not say".into())
            }
        },
        Ok,
    )
}

/// As in `kubernetes_feature_enabled{name="X",stage="BETA"} 1`.
fn is_on(metrics: &str, feature: &str) -> Option<bool> {
    let name = format!("kubernetes_feature_enabled{{name=\"{feature}\",");
    let line = metrics.lines().find(|line| line.starts_with(&name))?;
    Some(line.ends_with(" 1"))
}

async fn policies_served(client: &Client) -> Known<bool> {
    let group = client.list_api_group_resources("admissionregistration.k8s.io/v1").await;
    let group = group.map_err(|error| why("list the API's admission resources", &error))?;
    Ok(group.resources.iter().any(|resource| resource.name == "validatingadmissionpolicies"))
}

/// Those of these rights that a ServiceAccount has, as the API server's own authorizers say.
async fn rights(client: &Client, namespace: &str, account: &str, asked: BTreeSet<Right>) -> Known<BTreeSet<Right>> {
    let reviews = stream::iter(asked).map(|right| async move {
        let allowed = review(client, namespace, account, right).await?;
        Ok(allowed.then_some(right))
    });
    let answers: Result<Vec<_>, kube::Error> = reviews.buffered(QUESTIONS).try_collect().await;
    let answers = answers.map_err(|error| why("review others' rights", &error))?;
    Ok(answers.into_iter().flatten().collect())
}

async fn review(client: &Client, namespace: &str, account: &str, right: Right) -> kube::Result<bool> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let (namespaced, name) = match right.scope {
        Scope::Cluster => (None, None),
        Scope::Named(name) => (None, Some(name.to_owned())),
        Scope::Namespace(name) => (Some(namespace.to_owned()), name.map(str::to_owned)),
    };
    let attributes = ResourceAttributes {
        verb: Some(right.verb.to_owned()),
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        namespace: namespaced,
        name,
        ..ResourceAttributes::default()
    };
    let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
    let spec = SubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        user: Some(format!("system:serviceaccount:{namespace}:{account}")),
        groups: Some(groups.map(str::to_owned).to_vec()),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Whether a policy is there with a binding that denies.
async fn is_bound(client: &Client, name: &str) -> Known<bool> {
    let policies = Api::<ValidatingAdmissionPolicy>::all(client.clone());
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(client.clone());
    let found = async {
        if policies.get_opt(name).await?.is_none() {
            return Ok(false);
        }
        let bindings = bindings.list(&ListParams::default()).await?;
        Ok(bindings.into_iter().map(|binding| binding.spec).any(|spec| {
            let denies = spec.validation_actions.iter().any(|action| action == "Deny");
            // One that is for some objects only leaves others.
            spec.policy_name == name && denies && spec.match_resources.is_none()
        }))
    };
    found.await.map_err(|error| why("read admission policies", &error))
}

/// Whether the webhook for evictions is there, is known by a CA, and refuses where it is not answered.
async fn webhook(client: &Client) -> Known<bool> {
    let configurations = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let found = configurations.get_opt(AGENT).await.map_err(|error| why("read webhooks", &error))?;
    let webhooks = found.and_then(|found| found.webhooks).unwrap_or_default();
    Ok(webhooks.iter().any(|webhook| {
        let rules = webhook.rules.iter().flatten().flat_map(|rule| rule.resources.iter().flatten());
        let mut resources = rules.map(String::as_str);
        // `Fail` is the default.
        let refuses = webhook.failure_policy.as_deref().is_none_or(|policy| policy == "Fail");
        refuses && webhook.client_config.ca_bundle.is_some() && resources.any(|it| it == "pods/eviction")
    }))
}

/// Names of objects, for questions about two of them.
pub(super) fn names<K: kube::Resource>(objects: &[K]) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_read_from_the_api_server_s_metrics() {
        let metrics = "# TYPE kubernetes_feature_enabled gauge\n\
                       kubernetes_feature_enabled{name=\"ConstrainedImpersonationX\",stage=\"\"} 1\n\
                       kubernetes_feature_enabled{name=\"ConstrainedImpersonation\",stage=\"BETA\"} 0\n\
                       kubernetes_feature_enabled{name=\"Other\",stage=\"\"} 1\n";
        assert_eq!(is_on(metrics, "ConstrainedImpersonation"), Some(false));
        assert_eq!(is_on(metrics, "Other"), Some(true));
        assert_eq!(is_on(metrics, "Another"), None);
    }
}
