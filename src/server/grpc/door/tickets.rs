//! Tickets for streams: a browser's `EventSource` cannot send a token, so a page sends its request for a stream and its token first,
//! and gets a ticket for the address. A ticket is good once, for a minute, and for that request.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::HeaderValue;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use tokio::time::Instant;

use crate::budget::Payer;

/// How long a ticket is good: a page uses it at once.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// A request for a stream, with some hundred task ids. So all tickets together have 16 MiB.
pub(super) const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Tickets in all, and of one client or one connection of anonymous clients. Beyond it the request is refused, and passes when the
/// oldest are used or have expired.
const TICKETS_MAX: usize = 1_024;
const TICKETS_PER_CLIENT_MAX: usize = 128;
/// 256 random bits.
const SECRET_BYTES: usize = 32;

/// What a ticket stands for.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// The encoded request.
    pub message: Vec<u8>,
    /// The credential that was shown for it. It is judged again when the stream is opened.
    pub authorization: Option<HeaderValue>,
}

/// The tickets that were not used yet, by their digests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tickets(Arc<Mutex<HashMap<Vec<u8>, Issued>>>);

/// A ticket, and until when it is good.
#[derive(Debug)]
pub(super) struct Issued {
    pub ticket: Ticket,
    payer: Payer,
    expires: Instant,
}

impl Tickets {
    /// A new ticket; `None` if there are too many.
    pub(super) fn issue(&self, ticket: Ticket, payer: &Payer, now: Instant) -> Option<String> {
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).ok()?;
        let text = URL_SAFE_NO_PAD.encode(secret);

        let mut issued = self.0.lock();
        issued.retain(|_, one| one.expires > now);
        let of_payer = issued.values().filter(|one| one.payer == *payer).count();
        if issued.len() >= TICKETS_MAX || of_payer >= TICKETS_PER_CLIENT_MAX {
            return None;
        }
        let one = Issued {
            ticket,
            payer: payer.clone(),
            expires: now + LIFE,
        };
        issued.insert(digest_of(&text), one);
        Some(text)
    }

    /// What a ticket stands for, if it is good. It is used then.
    pub(super) fn redeem(&self, text: &str, now: Instant) -> Option<Issued> {
        let issued = self.0.lock().remove(&digest_of(text))?;
        (issued.expires > now).then_some(issued)
    }

    /// Makes a ticket good again, for as long as it would have been.
    pub(super) fn put_back(&self, text: &str, issued: Issued) {
        self.0.lock().insert(digest_of(text), issued);
    }
}

/// A map is searched by what it is given, in a time that depends on it: so not by the secret.
fn digest_of(text: &str) -> Vec<u8> {
    digest(&SHA256, text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(message: &[u8]) -> Ticket {
        Ticket {
            message: message.to_vec(),
            authorization: None,
        }
    }

    #[test]
    fn a_ticket_is_good_once_and_for_a_minute() {
        let (tickets, payer) = (Tickets::default(), Payer::Connection(None));
        let now = Instant::now();
        let text = tickets.issue(ticket(b"a"), &payer, now).unwrap();
        assert!(tickets.redeem("nothing", now).is_none());
        let issued = tickets.redeem(&text, now).unwrap();
        assert_eq!(issued.ticket.message, b"a");
        assert!(tickets.redeem(&text, now).is_none(), "it is used");
        tickets.put_back(&text, issued);
        assert!(
            tickets.redeem(&text, now + LIFE).is_none(),
            "no longer than before"
        );

        let late = tickets.issue(ticket(b"b"), &payer, now).unwrap();
        let in_time = tickets.issue(ticket(b"c"), &payer, now).unwrap();
        let before = now + LIFE - Duration::from_millis(1);
        assert!(tickets.redeem(&in_time, before).is_some());
        assert!(tickets.redeem(&late, now + LIFE).is_none());
    }

    #[test]
    fn nobody_takes_all_tickets_and_those_that_expire_make_room() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let payer = |name: usize| Payer::Client(name.to_string().into());
        let take_all = |of: &Payer, now| {
            std::iter::repeat_with(|| tickets.issue(ticket(b""), of, now))
                .take_while(Option::is_some)
                .count()
        };
        for name in 0..TICKETS_MAX / TICKETS_PER_CLIENT_MAX {
            assert_eq!(take_all(&payer(name), now), TICKETS_PER_CLIENT_MAX);
        }
        assert_eq!(take_all(&payer(99), now), 0);
        assert_eq!(take_all(&payer(99), now + LIFE), TICKETS_PER_CLIENT_MAX);
    }
}
