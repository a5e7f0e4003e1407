//! Certificates and kubeconfigs of a lab: two authorities, one client certificate per component.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// Who may use the lab's API, by file name: common name and, where it needs one, its group.
const CLIENTS: [(&str, &str, Option<&str>); 5] = [
    ("admin", "admin", Some("system:masters")),
    ("cloud", "lab:cloud", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kwok", "lab:kwok", Some("system:masters")),
];

/// Every name that a client may dial one of our servers by.
const SERVER_NAMES: [&str; 7] = [
    "127.0.0.1",
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The front proxy's common name, which kube-apiserver is told to trust.
pub(super) const FRONT_PROXY: &str = "front-proxy";

/// Writes `pki/`, one kubeconfig per client in `conf/`, and the admin's as `kubeconfig`.
pub(super) fn write(dir: &Path, server: &str) -> Result<()> {
    let pki = dir.join("pki");
    let cluster = authority(&pki, "ca")?;
    // Its own authority: whoever holds a certificate of it may claim to be any user.
    let front = authority(&pki, "front-ca")?;
    issue(&pki, "front-proxy", &cluster_params(FRONT_PROXY, None, &[])?, &front)?;
    issue(&pki, "server", &cluster_params("lab-server", None, &SERVER_NAMES)?, &cluster)?;
    for (name, common_name, group) in CLIENTS {
        issue(&pki, name, &cluster_params(common_name, group, &[])?, &cluster)?;
        let text = kubeconfig(&pki, name, server);
        fs::write(dir.join("conf").join(format!("{name}.kubeconfig")), &text).context("write a kubeconfig")?;
        if name == "admin" {
            fs::write(dir.join("kubeconfig"), &text).context("write the kubeconfig")?;
        }
    }
    let tokens = KeyPair::generate()?;
    fs::write(pki.join("tokens.key"), tokens.serialize_pem()).context("write the key that signs tokens")?;
    fs::write(pki.join("tokens.pub"), tokens.public_key_pem()).context("write the key that checks tokens")
}

fn authority(pki: &Path, name: &str) -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("lab-{name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    save(pki, name, &params.self_signed(&key)?.pem(), &key)?;
    Ok(Issuer::new(params, key))
}

fn cluster_params(common_name: &str, group: Option<&str>, names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn issue(pki: &Path, name: &str, params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    save(pki, name, &params.signed_by(&key, issuer)?.pem(), &key)
}

fn save(pki: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    fs::write(pki.join(format!("{name}.crt")), certificate).with_context(|| format!("write certificate {name}"))?;
    fs::write(pki.join(format!("{name}.key")), key.serialize_pem()).with_context(|| format!("write key {name}"))
}

/// JSON, which is YAML too.
fn kubeconfig(pki: &Path, name: &str, server: &str) -> String {
    let file = |name: String| pki.join(name).to_string_lossy().into_owned();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": file("ca.crt".into())}}],
        "users": [{"name": name, "user": {
            "client-certificate": file(format!("{name}.crt")),
            "client-key": file(format!("{name}.key")),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
    });
    format!("{config:#}\n")
}
