//! The live page of a run that is replayed.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use ebb_page::{Page, Recording, replay};
use ebb_sim::run::Run;
use tokio::net::TcpListener;

/// Virtual seconds a second: the demo's fifty minutes in fifty seconds.
const SPEED: u32 = 60;

/// Serves until interrupted.
#[tokio::main]
pub(crate) async fn run(address: SocketAddr, run: Run) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: give another address with --serve ADDRESS"))?;
    println!("The run is shown at http://{}/, again and again, until you press Ctrl-C", listener.local_addr()?);
    let page = Page::new(format!("{}, {SPEED} times as fast", run.scenario));
    let recording = Recording { snapshots: run.snapshots, steps: run.steps };
    tokio::select! {
        result = axum::serve(listener, page.router()) => result.context("serve the page"),
        () = replay(&page, &recording, SPEED) => Ok(()),
        result = tokio::signal::ctrl_c() => result.context("wait for Ctrl-C"),
    }
}
