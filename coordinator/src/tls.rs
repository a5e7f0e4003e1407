//! The certificate that agents see, kept in a Secret so that all replicas show the same one, and its CA in a ConfigMap
//! for the agents. Needs no cert-manager; a Secret that somebody else wrote is used as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{Timestamp, ToSpan, Unit, tz::TimeZone};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::{config_map, names};

/// Names of the Secret and of the ConfigMap.
pub const SECRET: &str = "ebb-coordinator-tls";
pub const CA_CONFIG_MAP: &str = "ebb-coordinator-ca";
pub const CA_KEY: &str = "ca.crt";

/// The CA outlives clusters; the serving certificate is short-lived because renewing it costs nothing.
const CA_DAYS: i64 = 3650;
const DAYS: i64 = 90;
/// Clocks of nodes may be behind ours.
const BACKDATED_DAYS: i64 = 1;
/// Between two looks at the Secret; and between two attempts when that failed.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at who is told of the CA; and after one that failed.
const TELL_EVERY: Duration = Duration::from_secs(60);
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// On Secrets of our making: when to renew, and for which names it was made.
const RENEW_AT: &str = "ebb.dev/renew-at";
const NAMES: &str = "ebb.dev/names";

/// As PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub chain: String,
    pub key: String,
    /// Whose it is; `None`: somebody else's, who did not say.
    pub ca: Option<String>,
}

pub struct Certificates {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// What agents may call us.
    names: Vec<String>,
}

impl Certificates {
    pub fn new(client: Client, namespace: &str, further: &[String]) -> Self {
        let service = names::SERVICE;
        let mut names = vec![
            service.to_owned(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ];
        names.extend(further.iter().cloned());
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            names,
        }
    }

    /// Keeps the newest certificate in `current`, for ever.
    pub async fn keep(self, current: watch::Sender<Option<Certificate>>) {
        loop {
            match self.look().await {
                Ok(certificate) => {
                    current.send_if_modified(|current| {
                        let changed = current.as_ref() != Some(&certificate);
                        *current = Some(certificate);
                        changed
                    });
                    sleep(LOOK_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "certificate not read or renewed");
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    async fn look(&self) -> anyhow::Result<Certificate> {
        let now = Timestamp::now();
        let standing = self.secrets.get_opt(SECRET).await.context("read the Secret")?;
        let secret = match standing {
            Some(secret) if !wants_renewal(&secret, &self.names, now) => secret,
            standing => self.write(make(standing, &self.names, now)?).await?,
        };
        let text = |key| read(&secret, key);
        let certificate = Certificate {
            chain: text("tls.crt").context("the Secret has no tls.crt")?,
            key: text("tls.key").context("the Secret has no tls.key")?,
            ca: text(CA_KEY),
        };
        if let Some(ca) = &certificate.ca {
            self.publish(ca.clone()).await.context("publish the CA")?;
        }
        Ok(certificate)
    }

    /// Of several replicas one is first; the others take what it wrote.
    async fn write(&self, secret: Secret) -> anyhow::Result<Secret> {
        let params = PostParams::default();
        let written = if secret.metadata.resource_version.is_none() {
            self.secrets.create(&params, &secret).await
        } else {
            self.secrets.replace(SECRET, &params, &secret).await
        };
        match written {
            Ok(secret) => {
                tracing::info!(secret = SECRET, "certificate made");
                Ok(secret)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.secrets.get(SECRET).await.context("read the Secret that another replica wrote")
            }
            Err(error) => Err(error).context("write the Secret"),
        }
    }

    async fn publish(&self, ca: String) -> Result<(), kube::Error> {
        match config_map::set(&self.config_maps, CA_CONFIG_MAP, BTreeMap::from([(CA_KEY.into(), ca)])).await {
            // Another replica was faster, with the same CA; the next look makes sure of it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other,
        }
    }
}

/// When the API server is to be told of the CA: whenever that changes, again after an attempt that failed, and again and
/// again, as somebody may have applied the chart anew.
pub(crate) struct Telling {
    /// For the log.
    whom: &'static str,
    certificates: watch::Receiver<Option<Certificate>>,
    /// How the last attempt went.
    told: Option<bool>,
}

impl Telling {
    pub(crate) fn new(whom: &'static str, certificates: watch::Receiver<Option<Certificate>>) -> Self {
        Self { whom, certificates, told: None }
    }

    /// Waits until it is time; gives the CA, or `None` when there will be no more certificates.
    pub(crate) async fn due(&mut self) -> Option<String> {
        loop {
            match self.told {
                None => {}
                Some(false) => sleep(TELL_AGAIN).await,
                Some(true) => {
                    if let Ok(Err(_)) = timeout(TELL_EVERY, self.certificates.changed()).await {
                        return None;
                    }
                }
            }
            let ca = self.certificates.wait_for(Option::is_some).await.ok()?.as_ref().and_then(|it| it.ca.clone());
            if ca.is_some() {
                return ca;
            }
            // A certificate of somebody else's without its CA: whoever made it sets the bundle, too.
            self.told = Some(true);
        }
    }

    pub(crate) fn done(&mut self, told: anyhow::Result<()>) {
        self.told = Some(told.is_ok());
        if let Err(error) = told {
            tracing::warn!(whom = self.whom, error = format!("{error:#}"), "the API server is not told of our CA");
        }
    }
}

fn read(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok()
}

/// Whether it is ours to renew, and due or made for other names.
fn wants_renewal(secret: &Secret, names: &[String], now: Timestamp) -> bool {
    let Some(renew_at) = secret.annotations().get(RENEW_AT) else {
        // Not of our making; one with nothing in it is nobody's.
        return secret.data.as_ref().is_none_or(BTreeMap::is_empty);
    };
    let due = renew_at.parse::<Timestamp>().map_or(true, |renew_at| renew_at <= now);
    due || secret.annotations().get(NAMES) != Some(&names.join(","))
}

/// A Secret with a new certificate, of the CA that is there or of a new one.
fn make(standing: Option<Secret>, names: &[String], now: Timestamp) -> anyhow::Result<Secret> {
    let mut secret = standing.unwrap_or_else(|| Secret {
        metadata: ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".into()),
        ..Secret::default()
    });
    // The CA is replaced with the Secret only: agents then read the new one from the ConfigMap.
    let (ca_pem, ca_key) = match (read(&secret, CA_KEY), read(&secret, "ca.key")) {
        (Some(pem), Some(key)) => (pem, KeyPair::from_pem(&key).context("read the CA's key")?),
        _ => {
            let key = KeyPair::generate()?;
            (ca_params(now)?.self_signed(&key)?.pem(), key)
        }
    };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "ebb-coordinator");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, DAYS)?;
    let ca_key_pem = ca_key.serialize_pem();
    let certificate = params.signed_by(&key, &Issuer::new(ca_params(now)?, ca_key))?;

    let texts =
        [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem()), (CA_KEY, ca_pem), ("ca.key", ca_key_pem)];
    secret.data = Some(texts.into_iter().map(|(name, text)| (name.into(), ByteString(text.into_bytes()))).collect());
    // Two thirds through its life: a month is left for us to be down.
    let renew_at = now + Duration::from_secs(u64::try_from(DAYS)? * 2 / 3 * 24 * 60 * 60);
    let annotations = secret.annotations_mut();
    annotations.insert(RENEW_AT.into(), renew_at.round(Unit::Second)?.to_string());
    annotations.insert(NAMES.into(), names.join(","));
    Ok(secret)
}

/// The same name at every call: with the same key it is the same CA, whenever its own certificate was made.
fn ca_params(now: Timestamp) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "ebb-coordinator CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, now, CA_DAYS)?;
    Ok(params)
}

/// Valid from yesterday, and for so many days. Days are fine enough, and spare us naming another crate's time.
fn validity(params: &mut CertificateParams, now: Timestamp, days: i64) -> anyhow::Result<()> {
    let midnight = |days: i64| {
        let date = now.to_zoned(TimeZone::UTC).date().checked_add(days.days())?;
        let part = |number: i8| u8::try_from(number).expect("months and days are above zero");
        anyhow::Ok(rcgen::date_time_ymd(date.year().into(), part(date.month()), part(date.day())))
    };
    (params.not_before, params.not_after) = (midnight(-BACKDATED_DAYS)?, midnight(days)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(further: &str) -> Vec<String> {
        ["ebb-coordinator", further].map(str::to_owned).into()
    }

    fn after(days: u64) -> Timestamp {
        let start: Timestamp = "2026-11-24T03:00:00Z".parse().expect("a time");
        start + Duration::from_secs(days * 24 * 60 * 60)
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let secret = make(None, &names("localhost"), after(0)).unwrap();
        assert!(!wants_renewal(&secret, &names("localhost"), after(59)));
        assert!(wants_renewal(&secret, &names("localhost"), after(60)));
    }

    #[test]
    fn renewing_keeps_the_ca_so_that_agents_need_nothing_new() {
        let first = make(None, &names("localhost"), after(0)).unwrap();
        let second = make(Some(first.clone()), &names("localhost"), after(60)).unwrap();
        assert_eq!(read(&first, "ca.crt"), read(&second, "ca.crt"));
        assert_ne!(read(&first, "tls.crt"), read(&second, "tls.crt"));
    }

    #[test]
    fn other_names_need_another_certificate() {
        let secret = make(None, &names("localhost"), after(0)).unwrap();
        assert!(wants_renewal(&secret, &names("example"), after(0)));
    }

    #[test]
    fn a_secret_of_somebody_elses_is_left_alone() {
        let data = BTreeMap::from([("tls.crt".to_owned(), ByteString(b"theirs".to_vec()))]);
        let secret = Secret { data: Some(data), ..Secret::default() };
        assert!(!wants_renewal(&secret, &names("localhost"), after(9999)));
        assert!(wants_renewal(&Secret::default(), &names("localhost"), after(0)));
    }
}
