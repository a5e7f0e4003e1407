//! Serves HTTPS with the certificate that `tls` keeps current, to clients who may be anybody until they have said who they
//! are: what one of them can hold is bounded. One who shows a certificate of a CA that is trusted for it is known by its
//! name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::parse_x509_certificate;

use crate::tls::Certificate;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that has not sent its request's head by then holds a place that others need.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// An extension of each request: the common name in the certificate that the client showed, where there is a CA for clients
/// and it has signed it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer(pub(crate) Option<String>);

/// By which CA clients are known, as PEM. `None`: not known yet, and so is no client.
pub(crate) type ClientCa = watch::Receiver<Option<String>>;

/// Serves until `stop`, from the first certificate on; `places`: connections at a time. `clients`: whether any are known by a
/// certificate.
pub(crate) async fn serve(
    address: SocketAddr,
    router: Router,
    places: usize,
    mut certificates: watch::Receiver<Option<Certificate>>,
    clients: Option<ClientCa>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let places = Arc::new(Semaphore::new(places));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        certificate = certificates.wait_for(Option::is_some) => drop(certificate?),
    }
    let (_nobody, nothing) = watch::channel(None);
    let mut clients = clients.unwrap_or(nothing);
    let mut acceptor = acceptor(&certificates, &clients)?;
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = async { tokio::select! { it = certificates.changed() => it, it = clients.changed() => it } } => {
                changed?;
                // Connections that are open go on with what they began with.
                acceptor = self::acceptor(&certificates, &clients)?;
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, or a client that left early: either passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let service = TowerToHyperService::new(router.layer(Extension(Peer(shown.and_then(common_name)))));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended");
                },
            }
        });
    }
}

fn acceptor(certificates: &watch::Receiver<Option<Certificate>>, clients: &ClientCa) -> anyhow::Result<TlsAcceptor> {
    let certificate = certificates.borrow().clone().expect("it was waited for");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("read the certificate's key")?;
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier(clients.borrow().as_deref())?)
        .with_single_cert(chain.context("read the certificate")?, key)
        .context("use the certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Who shows no certificate is let in, as nobody; who shows one of another CA is not.
fn verifier(ca: Option<&str>) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let Some(ca) = ca else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("read the CA of clients")?).context("use the CA of clients")?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
    verifier.build().context("use the CA of clients")
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}
