//! A terminal for one test: a pseudo-terminal with a program in it, and the screen that its output makes.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use vt100::{Parser, Screen};

use crate::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// The program is killed on drop.
pub struct Terminal {
    child: Child,
    ours: File,
    /// The program's end, to look at its settings also after the program has gone.
    theirs: OwnedFd,
    screen: Arc<Mutex<Parser>>,
}

impl Terminal {
    /// Starts a program as a shell would, in a session whose terminal this is.
    pub fn start(program: &Command, columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("Linux has pseudo-terminals");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a new pseudo-terminal is ours");
        let theirs = ioctl_tiocgptpeer(&ours, flags).expect("it has another end");
        let stdio = || Stdio::from(theirs.try_clone().expect("a file can be shared"));
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        command.env("TERM", "xterm-256color").stdin(stdio()).stdout(stdio()).stderr(stdio());
        resize(&ours, columns, rows);
        let child = command.spawn().expect("util-linux is everywhere");
        let (rows, columns) = size(columns, rows);
        let screen = Arc::new(Mutex::new(Parser::new(rows, columns, 0)));
        let mut output = File::from(ours.try_clone().expect("a file can be shared"));
        let drawn = Arc::clone(&screen);
        // Ends when nobody has the other end any more.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                lock(&drawn).process(&bytes[..count]);
            }
        });
        Self { child, ours: File::from(ours), theirs, screen }
    }

    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let (nonzero_rows, nonzero_columns) = size(columns, rows);
        lock(&self.screen).screen_mut().set_size(nonzero_rows, nonzero_columns);
        resize(&self.ours, columns, rows);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child takes signals");
    }

    /// The lines in sight, without blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let screen = lock(&self.screen);
        let (_, columns) = screen.screen().size();
        screen.screen().rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits until the screen shows this.
    pub async fn until(&self, what: &str, holds: impl Fn(&[String]) -> bool) {
        wait_until(what, SOON, async || holds(&self.lines()), async || self.lines().join("\n")).await;
    }

    /// Waits until the program has ended, by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = async || {
            status = self.child.try_wait().expect("our child can be asked");
            status.is_some()
        };
        wait_until("the program to end", SOON, ended, async || String::new()).await;
        status.expect("was waited for")
    }

    /// Waits until the terminal is a shell's again: lines are edited and echoed, the cursor is seen, and what stood there
    /// before is back.
    pub async fn restored(&self) {
        let restored = async || {
            let modes = tcgetattr(&self.theirs).expect("a terminal has settings").local_modes;
            let screen = lock(&self.screen);
            let seen = |screen: &Screen| !screen.alternate_screen() && !screen.hide_cursor();
            seen(screen.screen()) && modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
        };
        wait_until("the terminal as it was", SOON, restored, async || self.lines().join("\n")).await;
    }

    /// Whether a program has it for itself.
    pub fn is_taken_over(&self) -> bool {
        let screen = lock(&self.screen);
        screen.screen().alternate_screen() && screen.screen().hide_cursor()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn lock(screen: &Mutex<Parser>) -> MutexGuard<'_, Parser> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(columns: u16, rows: u16) -> (NonZeroU16, NonZeroU16) {
    let some = |count| NonZeroU16::new(count).expect("a terminal has columns and rows");
    (some(rows), some(columns))
}

/// The kernel tells the program with SIGWINCH.
fn resize(terminal: impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a terminal has a size");
}
