//! Whom the API server speaks for. How it proves itself, and in which headers it names the user, it says in a ConfigMap
//! of its own (`extension-apiserver-authentication`), which every aggregated API reads.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::https::Peer;

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
/// A CA that is about to change is in the ConfigMap long before it is used.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const RETRY_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrontProxy {
    /// As PEM: who has a certificate of it may name users.
    ca: String,
    /// Common names; none: any that the CA has signed.
    allowed_names: Vec<String>,
    username_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_header_prefixes: Vec<String>,
}

/// A user as the API server names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

impl FrontProxy {
    /// Keeps the newest in `current`, for ever, and its CA in `ca`.
    pub(crate) async fn keep(client: Client, current: watch::Sender<Option<Self>>, ca: watch::Sender<Option<String>>) {
        let config_maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
        loop {
            let context = || format!("ConfigMap {NAMESPACE}/{CONFIG_MAP}");
            let read = async { Self::read(&config_maps.get(CONFIG_MAP).await?) };
            match read.await.with_context(context) {
                Ok(read) => {
                    // Its names before those whom they are for.
                    current.send_replace(Some(read.clone()));
                    ca.send_if_modified(|ca| {
                        let changed = ca.as_ref() != Some(&read.ca);
                        *ca = Some(read.ca);
                        changed
                    });
                    sleep(LOOK_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "it is not known how the API server proves itself");
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    pub(super) fn read(config_map: &ConfigMap) -> anyhow::Result<Self> {
        let data = config_map.data.as_ref();
        let text = |key: &str| data.and_then(|data| data.get(key));
        // Lists are JSON.
        let list = |key: &str| match text(key) {
            Some(text) => serde_json::from_str::<Vec<String>>(text).with_context(|| format!("read {key}")),
            None => Ok(Vec::new()),
        };
        let ca = text("requestheader-client-ca-file").filter(|ca| !ca.is_empty());
        let ca =
            ca.context("it has no requestheader-client-ca-file: the API server does not aggregate others' APIs")?;
        Ok(Self {
            ca: ca.clone(),
            allowed_names: list("requestheader-allowed-names")?,
            username_headers: list("requestheader-username-headers")?,
            group_headers: list("requestheader-group-headers")?,
            extra_header_prefixes: list("requestheader-extra-headers-prefix")?,
        })
    }

    /// `None`: it is not the API server who asks, or it names nobody. That the peer's certificate is of the CA was seen
    /// when it connected.
    pub(crate) fn user(&self, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        let Peer(Some(name)) = peer else { return None };
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(name) {
            return None;
        }
        let values = |header: &String| headers.get_all(header.as_str()).iter().filter_map(|value| value.to_str().ok());
        let name = self.username_headers.iter().flat_map(values).find(|name| !name.is_empty())?;
        let groups = self.group_headers.iter().flat_map(values);
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (header, value) in headers {
            let key = self.extra_header_prefixes.iter().find_map(|prefix| {
                // Names of headers are read as small letters.
                header.as_str().strip_prefix(prefix.to_ascii_lowercase().as_str())
            });
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra.entry(unescape(key)).or_default().push(value.to_owned());
            }
        }
        Some(User { name: name.to_owned(), groups: groups.map(str::to_owned).collect(), extra })
    }
}

/// A key's characters that no header's name may have come percent-encoded.
fn unescape(key: &str) -> String {
    percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn proxy(names: &str) -> FrontProxy {
        let config_map: ConfigMap = serde_json::from_value(json!({"data": {
            "requestheader-client-ca-file": "CA",
            "requestheader-allowed-names": names,
            "requestheader-username-headers": r#"["X-Remote-User"]"#,
            "requestheader-group-headers": r#"["X-Remote-Group"]"#,
            "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        }}))
        .unwrap();
        FrontProxy::read(&config_map).unwrap()
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value))
        };
        of.iter().map(pair).collect()
    }

    #[test]
    fn the_user_is_who_the_api_server_names() {
        let named = headers(&[
            ("X-Remote-User", "system:serviceaccount:kube-system:hpa"),
            ("X-Remote-Group", "a"),
            ("X-Remote-Group", "b"),
            ("X-Remote-Extra-Example.com%2fKey", "v"),
        ]);
        let peer = Peer(Some("front-proxy-client".into()));
        let user = proxy(r#"["front-proxy-client"]"#).user(&peer, &named).unwrap();
        assert_eq!(user.name, "system:serviceaccount:kube-system:hpa");
        assert_eq!(user.groups, ["a", "b"]);
        assert_eq!(user.extra, BTreeMap::from([("example.com/key".to_owned(), vec!["v".to_owned()])]));
        assert!(proxy("[]").user(&peer, &named).is_some(), "any name that the CA has signed");
    }

    #[test]
    fn nobody_else_may_name_users() {
        let named = headers(&[("X-Remote-User", "admin")]);
        let proxy = proxy(r#"["front-proxy-client"]"#);
        assert_eq!(proxy.user(&Peer(None), &named), None, "no certificate");
        assert_eq!(proxy.user(&Peer(Some("kubelet".into())), &named), None, "another's certificate");
        assert_eq!(proxy.user(&Peer(Some("front-proxy-client".into())), &headers(&[])), None, "nobody is named");
    }

    #[test]
    fn an_api_server_that_does_not_aggregate_is_refused_in_words() {
        let error = FrontProxy::read(&ConfigMap::default()).unwrap_err();
        assert!(error.to_string().contains("does not aggregate"), "{error}");
    }
}
