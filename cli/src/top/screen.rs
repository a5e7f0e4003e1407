//! The terminal: takes it over, draws what changed, and gives it back whatever happens.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};

use super::app::{App, Flow, News};
use super::draw::draw;
use super::link::follow;
use crate::client::Target;

/// Events that wait while a frame is drawn; who sends more waits itself.
const WAITING: usize = 64;
/// Ages go on without news.
const TICK: Duration = Duration::from_secs(1);
/// A coordinator with much to tell may send hundreds of updates a second.
const FRAME: Duration = Duration::from_millis(100);

enum Happening {
    News(News),
    Terminal(Event),
    End,
}

pub(super) fn show(target: Target, every: Duration) -> Result<()> {
    let (sender, happenings) = sync_channel(WAITING);
    let mut app = App::new(&target.to_string());
    watch(target, every, sender.clone())?;
    let mut terminal = ratatui::try_init().context("take over the terminal; --once needs none")?;
    read_keys(sender)?;
    let result = run(&mut terminal, &mut app, &happenings);
    ratatui::restore();
    result
}

fn run(terminal: &mut DefaultTerminal, app: &mut App, happenings: &Receiver<Happening>) -> Result<()> {
    let begin = Instant::now();
    let mut drawn = begin;
    let mut due = Some(begin);
    loop {
        if due.is_some_and(|due| due <= Instant::now()) {
            terminal.draw(|frame| draw(app, frame.buffer_mut(), begin.elapsed())).context("draw")?;
            (drawn, due) = (Instant::now(), None);
        }
        let wake = due.unwrap_or(drawn + TICK);
        match happenings.recv_timeout(wake.saturating_duration_since(Instant::now())) {
            Ok(Happening::News(news)) => {
                app.take(news, begin.elapsed());
                due = due.or(Some(drawn + FRAME));
            }
            Ok(Happening::Terminal(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                if app.key(key) == Flow::Ends {
                    return Ok(());
                }
                due = Some(Instant::now());
            }
            Ok(Happening::Terminal(_)) => due = Some(Instant::now()),
            Ok(Happening::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => due = due.or(Some(Instant::now())),
        }
    }
}

/// Follows the other end, and takes signals: either end of a program is to find the terminal as it was.
fn watch(target: Target, every: Duration, sender: SyncSender<Happening>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let watch = async move {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // The drawing side never waits for this thread, so a full queue is a matter of milliseconds.
        let tell = |news| drop(sender.send(Happening::News(news)));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = follow(&target, every, tell) => {}
        }
        drop(sender.send(Happening::End));
        std::io::Result::Ok(())
    };
    let run = move || runtime.block_on(watch);
    std::thread::Builder::new().name("link".into()).spawn(run).context("start the connection's thread")?;
    Ok(())
}

fn read_keys(sender: SyncSender<Happening>) -> Result<()> {
    let read = move || {
        // An error: the terminal has gone.
        while let Ok(event) = event::read() {
            if sender.send(Happening::Terminal(event)).is_err() {
                return;
            }
        }
        drop(sender.send(Happening::End));
    };
    std::thread::Builder::new().name("keys".into()).spawn(read).context("start the keys' thread")?;
    Ok(())
}
