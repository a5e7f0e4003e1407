//! Serves HTTPS with the certificate that `tls` keeps current, to clients who may be anybody until they have said who they
//! are: what one of them can hold is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::Certificate;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that has not sent its request's head by then holds a place that others need.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// Serves until `stop`, from the first certificate on; `places`: connections at a time.
pub(crate) async fn serve(
    address: SocketAddr,
    router: Router,
    places: usize,
    mut certificates: watch::Receiver<Option<Certificate>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(places));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        certificate = certificates.wait_for(Option::is_some) => drop(certificate?),
    }
    let mut acceptor = acceptor(&certificates)?;
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = certificates.changed() => {
                changed?;
                // Connections that are open go on with the one they began with.
                acceptor = self::acceptor(&certificates)?;
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, or a client that left early: either passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, service, stop) = (acceptor.clone(), service.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
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

fn acceptor(certificates: &watch::Receiver<Option<Certificate>>) -> anyhow::Result<TlsAcceptor> {
    let certificate = certificates.borrow().clone().expect("it was waited for");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("read the certificate's key")?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.context("read the certificate")?, key)
        .context("use the certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
