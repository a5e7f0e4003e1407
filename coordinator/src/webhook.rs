//! Tells the API server by which CA our webhook is known, where the chart made one (`agent.rights: admission`).

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kubernetes::CONTROLLER;
use crate::tls::{Certificate, Telling};

/// As the chart names it.
const CONFIGURATION: &str = "ebb-agent";

/// Keeps it told, for ever.
pub(crate) async fn keep(client: Client, certificates: watch::Receiver<Option<Certificate>>) {
    let configurations = Api::<ValidatingWebhookConfiguration>::all(client);
    let mut telling = Telling::new(CONFIGURATION, certificates);
    while let Some(ca) = telling.due().await {
        telling.done(tell(&configurations, &ca).await);
    }
}

async fn tell(configurations: &Api<ValidatingWebhookConfiguration>, ca: &str) -> anyhow::Result<()> {
    let context = || format!("ValidatingWebhookConfiguration {CONFIGURATION}");
    let standing = configurations.get(CONFIGURATION).await.with_context(context)?;
    if let Some(patch) = bundle(&standing, ca) {
        let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
        configurations.patch(CONFIGURATION, &params, &Patch::Strategic(patch)).await.with_context(context)?;
        tracing::info!(configuration = CONFIGURATION, "webhook's CA written");
    }
    Ok(())
}

/// A strategic merge patch (webhooks are merged by name), where one is needed.
fn bundle(standing: &ValidatingWebhookConfiguration, ca: &str) -> Option<Value> {
    let ca = ByteString(ca.as_bytes().to_vec());
    let lacking = standing.webhooks.iter().flatten().filter(|it| it.client_config.ca_bundle.as_ref() != Some(&ca));
    let webhooks: Vec<_> = lacking.map(|it| json!({"name": it.name, "clientConfig": {"caBundle": ca}})).collect();
    (!webhooks.is_empty()).then(|| json!({"webhooks": webhooks}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_webhook_that_lacks_the_ca_is_patched() {
        let with = |ca: Value| -> ValidatingWebhookConfiguration {
            let config = json!({"service": {"name": "s", "namespace": "n"}, "caBundle": ca});
            let webhook = json!({"name": "evictions.ebb.dev", "clientConfig": config, "sideEffects": "None",
                "admissionReviewVersions": ["v1"]});
            serde_json::from_value(json!({"webhooks": [webhook]})).unwrap()
        };
        let patch = r#"{"webhooks":[{"clientConfig":{"caBundle":"Q0E="},"name":"evictions.ebb.dev"}]}"#;
        assert_eq!(bundle(&with(Value::Null), "CA").unwrap().to_string(), patch);
        assert_eq!(bundle(&with("b2xk".into()), "CA").unwrap().to_string(), patch);
        assert_eq!(bundle(&with("Q0E=".into()), "CA"), None);
        assert_eq!(bundle(&ValidatingWebhookConfiguration::default(), "CA"), None);
    }
}
