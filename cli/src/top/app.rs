//! What is looked at and how: takes news and keys, and is drawn. No terminal, no connection, no clock.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::cluster::{Cluster, Update};
use super::list::{List, Move};
use super::node::Node;
use super::watched::Watched;

/// What a connection tells.
#[derive(Debug)]
pub(super) enum News {
    Node(Box<Node>),
    Cluster(Box<Update>),
    /// Not to be reached, or not understood; it is tried again.
    Away(String),
}

#[derive(Debug, Default)]
pub(super) enum Subject {
    #[default]
    Unknown,
    Node(Box<Watched>),
    Cluster(Box<Cluster>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Cpu,
    Memory,
    Waiting,
    Gpu,
    Name,
}

impl Order {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Waiting => "waiting",
            Self::Gpu => "GPU",
            Self::Name => "name",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Goes,
    Ends,
}

#[derive(Debug, Default)]
pub(super) struct App {
    pub(super) url: String,
    pub(super) subject: Subject,
    /// Why nothing new comes, and since when; from before anything came.
    pub(super) away: Option<(Duration, String)>,
    pub(super) order: Order,
    /// The main table's, and that of an opened node's pods.
    pub(super) list: List,
    pub(super) pods: List,
    /// The name of the node whose pods are shown.
    pub(super) opened: Option<String>,
    pub(super) typing: bool,
    pub(super) help: bool,
    /// For paper: no keys are named, and no room is given to a past that was not watched.
    pub(super) plain: bool,
    /// Rows of the table, and what each is, as they were last drawn: what keys move in.
    pub(super) page: usize,
    pub(super) keys: Vec<String>,
}

impl App {
    pub(super) fn new(url: &str) -> Self {
        Self { url: super::text::clean(url), ..Self::default() }
    }

    /// `now`: since any beginning, the same for all calls.
    pub(super) fn take(&mut self, news: News, now: Duration) {
        match news {
            News::Away(why) => {
                let since = self.away.take().map_or(now, |(since, _)| since);
                self.away = Some((since, super::text::clean(&why)));
                return;
            }
            News::Node(node) => match &mut self.subject {
                Subject::Node(watched) => watched.take(*node),
                other => {
                    let mut watched = Box::<Watched>::default();
                    watched.take(*node);
                    *other = Subject::Node(watched);
                }
            },
            News::Cluster(update) => match &mut self.subject {
                Subject::Cluster(cluster) => cluster.take(*update),
                other => {
                    let mut cluster = Box::<Cluster>::default();
                    cluster.take(*update);
                    *other = Subject::Cluster(cluster);
                }
            },
        }
        self.away = None;
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Flow {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Flow::Ends } else { Flow::Goes };
        }
        if self.typing {
            self.type_filter(key.code);
            return Flow::Goes;
        }
        if self.help {
            self.help = false;
            return if key.code == KeyCode::Char('q') { Flow::Ends } else { Flow::Goes };
        }
        match key.code {
            KeyCode::Char('q') => return Flow::Ends,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('c') => self.sort(Order::Cpu),
            KeyCode::Char('m') => self.sort(Order::Memory),
            KeyCode::Char('w') => self.sort(Order::Waiting),
            KeyCode::Char('g') => self.sort(Order::Gpu),
            KeyCode::Char('n') => self.sort(Order::Name),
            KeyCode::Enter => self.open(),
            KeyCode::Esc => self.leave(),
            KeyCode::Up | KeyCode::Char('k') => self.go(Move::Up),
            KeyCode::Down | KeyCode::Char('j') => self.go(Move::Down),
            KeyCode::PageUp => self.go(Move::PageUp),
            KeyCode::PageDown => self.go(Move::PageDown),
            KeyCode::Home => self.go(Move::First),
            KeyCode::End => self.go(Move::Last),
            _ => {}
        }
        Flow::Goes
    }

    fn type_filter(&mut self, code: KeyCode) {
        let list = if self.opened.is_some() { &mut self.pods } else { &mut self.list };
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                list.filter.clear();
            }
            KeyCode::Backspace => {
                list.filter.pop();
            }
            KeyCode::Char(c) if !c.is_control() && list.filter.len() < 64 => list.filter.push(c),
            _ => {}
        }
    }

    fn sort(&mut self, order: Order) {
        self.order = order;
        self.list.rewind();
    }

    fn go(&mut self, to: Move) {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let list = if self.opened.is_some() { &mut self.pods } else { &mut self.list };
        list.go(to, &keys, self.page);
    }

    fn open(&mut self) {
        if matches!(self.subject, Subject::Cluster(_)) && self.opened.is_none() {
            self.opened = self.list.chosen().map(str::to_owned);
            self.pods = List::default();
        }
    }

    /// Back by one step.
    fn leave(&mut self) {
        let list = if self.opened.is_some() { &mut self.pods } else { &mut self.list };
        if list.filter.is_empty() {
            self.opened = None;
        } else {
            list.filter.clear();
        }
    }
}
