//! The API server's writing half, where the coordinator writes for the agent: the same requests to another address, with
//! a token that is worth nothing anywhere else.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::{Request, Response};
use kube::client::Body;
use kube::config::AuthInfo;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tower::service_fn;

use crate::uplink::CoordinatorUrl;

/// Less than a request may take, so that what is wrong is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Broker {
    pub url: CoordinatorUrl,
    /// Read again for every request: the coordinator makes it when it first starts, and another one with another CA.
    pub ca: PathBuf,
    pub server_name: Option<String>,
    pub token_file: PathBuf,
}

/// The client, and the CA that it was made with.
type Known = Mutex<Option<(Vec<u8>, Client)>>;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read the coordinator's CA in {}, which it makes when it first starts", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("use the coordinator's CA in {}", path.display())]
    Ca { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("make a client for the coordinator")]
    Client(#[source] kube::Error),
    #[error("ask the coordinator to write to the API server")]
    Ask(#[source] kube::Error),
}

impl Broker {
    /// Sends nothing yet.
    pub fn client(self) -> Client {
        let known: Arc<Known> = Arc::default();
        let service = service_fn(move |request: Request<Body>| {
            let (broker, known) = (self.clone(), known.clone());
            async move { broker.ask(&known, request).await }
        });
        Client::new(service, "default")
    }

    async fn ask(&self, known: &Known, request: Request<Body>) -> Result<Response<Body>, Error> {
        let read = |source| Error::Read { path: self.ca.clone(), source };
        let ca = tokio::fs::read(&self.ca).await.map_err(read)?;
        let standing = known.lock().expect("nobody panics while holding it").clone();
        let client = match standing.filter(|(of, _)| *of == ca) {
            Some((_, client)) => client,
            None => {
                let client = self.connect(&ca)?;
                *known.lock().expect("nobody panics while holding it") = Some((ca, client.clone()));
                client
            }
        };
        client.send(request).await.map_err(Error::Ask)
    }

    fn connect(&self, ca: &[u8]) -> Result<Client, Error> {
        let malformed = |source| Error::Ca { path: self.ca.clone(), source };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca).collect();
        let certificates = certificates.map_err(malformed)?;
        let mut config = Config::new(self.url.uri().clone());
        config.root_cert = Some(certificates.into_iter().map(|it| it.to_vec()).collect());
        config.tls_server_name = self.server_name.clone();
        let token_file = self.token_file.to_string_lossy().into_owned();
        config.auth_info = AuthInfo { token_file: Some(token_file), ..AuthInfo::default() };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        Client::try_from(config).map_err(Error::Client)
    }
}

#[cfg(test)]
mod tests {
    use ebb_kubernetes::chain;
    use kube::Error as KubeError;

    use super::*;

    #[tokio::test]
    async fn what_keeps_the_coordinator_from_being_asked_is_said_and_is_no_answer() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (ca, token_file) = (folder.path().join("ca.crt"), folder.path().join("token"));
        let url = "https://127.0.0.1:1".parse().unwrap();
        let client = Broker { url, ca: ca.clone(), server_name: None, token_file: token_file.clone() }.client();
        let check = async |parts: &[&str]| {
            let error = client.send(Request::new(Body::empty())).await.unwrap_err();
            // Not one that the API server gave.
            assert!(!matches!(error, KubeError::Api(_)));
            let said = chain(&error);
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        };
        check(&["read the coordinator's CA in", "ca.crt, which it makes when it first starts", "No such file"]).await;
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n&\n-----END CERTIFICATE-----\n").unwrap();
        check(&["use the coordinator's CA in", "ca.crt"]).await;
        std::fs::write(&ca, "").unwrap();
        check(&["make a client for the coordinator", "token"]).await;
        std::fs::write(&token_file, "token").unwrap();
        check(&["ask the coordinator to write to the API server", "refused"]).await;
    }
}
