//! Reading the quarantine. Writing it is the writer's.

use bytes::Bytes;

use super::{
    QuarantineHeader, ReadError, Store,
    layout::{Damaged, parse_quarantined},
    lock,
    log::{Place, Unread},
};

/// The reason in the header that stands in for one that cannot be read.
const DAMAGED: &str = "damaged";

/// A callback for the quarantine.
#[derive(Clone, Debug)]
pub struct NewQuarantined {
    /// Everything but the body.
    pub header: QuarantineHeader,
    /// The body as received.
    pub body: Bytes,
}

/// A callback in quarantine.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Its number, never used again.
    pub number: u64,
    /// Everything but the body.
    pub header: QuarantineHeader,
    /// The body as received.
    pub body: Bytes,
    /// Why it cannot be read any more. Then the header has what the index knows, and there is no
    /// body.
    pub damage: Option<String>,
}

impl Quarantined {
    /// About what it takes in a message.
    fn bytes(&self) -> usize {
        let QuarantineHeader {
            reason,
            detail,
            target,
            credential,
            bound,
            ..
        } = &self.header;
        reason.len()
            + detail.len()
            + target.len()
            + credential.len()
            + bound.bytes()
            + self.body.len()
    }
}

impl Store {
    /// Where the log has a quarantined callback, each copy with its number.
    pub(super) fn copies_of(&self, number: u64) -> Vec<(u64, Place)> {
        let held = lock(&self.quarantine).get(number);
        let copies = held
            .into_iter()
            .flat_map(|held| held.copies().collect::<Vec<_>>());
        copies.map(|place| (number, place)).collect()
    }

    /// The quarantined callback with this number, if it exists; of a damaged one what the index knows.
    pub fn quarantined(&self, number: u64) -> Result<Option<Quarantined>, ReadError> {
        match self.read_quarantined(number) {
            Err(Unread::Damaged(problem)) => Ok(self.damaged(number, problem)),
            found => Ok(found?),
        }
    }

    fn read_quarantined(&self, number: u64) -> Result<Option<Quarantined>, Unread> {
        let held = || lock(&self.quarantine).get(number);
        let mut place = held().map(|held| held.newest);
        loop {
            let Some(at) = place else { return Ok(None) };
            let value = self.log.quarantined(number, at);
            match value.and_then(|value| Ok(value.map(|value| read(number, &value)).transpose()?)) {
                Ok(Some(read)) => return Ok(Some(read)),
                failed => {
                    // It was taken out, or written again, while it was read.
                    let now = held().map(|held| held.newest);
                    if now == place {
                        return failed;
                    }
                    place = now;
                }
            }
        }
    }

    /// A damaged callback, by what the index knows of it; `None` if it has left the quarantine.
    fn damaged(&self, number: u64, problem: String) -> Option<Quarantined> {
        let header = lock(&self.shares).header_of(number)?;
        let header = QuarantineHeader {
            reason: DAMAGED.to_owned(),
            detail: format!("nothing else of it can be read ({problem}): discard it"),
            ..header
        };
        Some(Quarantined {
            number,
            header,
            body: Bytes::new(),
            damage: Some(problem),
        })
    }

    /// Quarantined callbacks with numbers above `after`, oldest first: at most `count_max`, and at
    /// most `bytes_max` after the first, of bodies and all else. Damaged ones are among them.
    pub fn quarantined_after(
        &self,
        after: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Quarantined>, ReadError> {
        let (mut found, mut bytes, mut looked_at) = (Vec::new(), 0, after);
        // Some at a time: what is not there is not durable yet, or was forgotten meanwhile, and the
        // next ones are looked at.
        while found.len() < count_max {
            let numbers: Vec<_> = lock(&self.shares)
                .after(looked_at)
                .take(count_max - found.len())
                .collect();
            let Some(&last) = numbers.last() else { break };
            looked_at = last;
            for number in numbers {
                let Some(callback) = self.quarantined(number)? else {
                    continue;
                };
                bytes += callback.bytes();
                if bytes > bytes_max && !found.is_empty() {
                    return Ok(found);
                }
                found.push(callback);
            }
        }
        Ok(found)
    }
}

fn read(number: u64, bytes: &Bytes) -> Result<Quarantined, Damaged> {
    let (header, body) = parse_quarantined(bytes)?;
    let body = bytes.slice_ref(body);
    Ok(Quarantined {
        number,
        header,
        body,
        damage: None,
    })
}
