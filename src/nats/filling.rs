//! Fills the stream with a log that exists already, from one place and while no node uses it.
//!
//! Until all of it is there, the stream's metadata says that it is not whole, and no node begins with it. What a filling that was cut
//! off has left is never used: it is done again, in a new stream.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::{
    api::{self, Failure, code},
    asker::Asker,
    backoff::Backoff,
    connect::Nats,
    error::NatsError,
    event::{Doubt, Event},
    publisher::Publication,
    settings::Settings,
    stream::draw,
    stream_config,
};
use crate::event::Epoch;

/// Longer than two elections of the servers take.
const TIME: Duration = Duration::from_secs(30);

impl Nats {
    /// Largest message that the server takes.
    pub fn message_bytes_max(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Begins to fill the stream, which has to be empty or missing, with the log of this epoch. `mark` says what is done, and is not
    /// used twice. With `anew`, a stream that was not filled to its end is made again.
    pub async fn begin_filling(
        &mut self,
        epoch: Epoch,
        mark: &str,
        anew: bool,
    ) -> Result<(), NatsError> {
        let (settings, deadline) = (self.settings.clone(), Instant::now() + TIME);
        let (asker, mut backoff) = (&mut self.asker, Backoff::default());
        loop {
            match begin(asker, &settings, epoch, mark, anew).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Tried::Again(_)) if Instant::now() < deadline => {}
                Err(Tried::Again(error) | Tried::Refused(error)) => return Err(error),
            }
            sleep(backoff.next()).await;
        }
    }

    /// Adds the message that is to have this sequence, and returns when the stream has it there.
    pub async fn fill(&mut self, sequence: u64, bytes: Bytes) -> Result<(), NatsError> {
        let (deadline, mut backoff) = (Instant::now() + TIME, Backoff::default());
        loop {
            match self.publish_at(sequence, bytes.clone()).await {
                Event::Acked { sequence: at, .. } if at == sequence => return Ok(()),
                Event::Refused { .. } => {
                    // An earlier try may have been stored.
                    let stored = self.message(sequence).await?;
                    return if stored.is_some_and(|stored| stored == bytes) {
                        Ok(())
                    } else {
                        Err(NatsError::Overtaken(self.settings.stream()))
                    };
                }
                Event::Unanswered {
                    why: Doubt::Full(problem),
                    ..
                } => return Err(NatsError::Full(problem)),
                _ if Instant::now() < deadline => sleep(backoff.next()).await,
                event => {
                    let (what, why) = ("take a message", format!("{event:?}"));
                    return Err(NatsError::NoAnswer { what, why });
                }
            }
        }
    }

    /// Ends the filling: the stream has so many messages, and is whole.
    pub async fn end_filling(&mut self, mark: &str, messages: u64) -> Result<(), NatsError> {
        let (settings, deadline) = (self.settings.clone(), Instant::now() + TIME);
        let (asker, mut backoff) = (&mut self.asker, Backoff::default());
        loop {
            match end(asker, &settings, mark, messages).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Tried::Again(_)) if Instant::now() < deadline => {}
                Err(Tried::Again(error) | Tried::Refused(error)) => return Err(error),
            }
            sleep(backoff.next()).await;
        }
    }

    async fn publish_at(&mut self, sequence: u64, bytes: Bytes) -> Event {
        let publication = Publication {
            expected: sequence - 1,
            chain: 0,
            bytes,
        };
        publication.publish(&mut self.asker, &self.settings).await
    }
}

/// Why a try has not succeeded.
enum Tried {
    /// The servers may have to elect a leader.
    Again(NatsError),
    Refused(NatsError),
}

fn tried(failure: Failure, what: &'static str) -> Tried {
    if failure.is_passing() {
        Tried::Again(failure.into_error(what))
    } else {
        Tried::Refused(failure.into_error(what))
    }
}

/// One step to an empty stream with the mark; true when it is there.
async fn begin(
    asker: &mut Asker,
    settings: &Settings,
    epoch: Epoch,
    mark: &str,
    anew: bool,
) -> Result<bool, Tried> {
    let stream = settings.stream();
    let info = match api::stream_info(asker, &stream).await {
        Ok(info) => info,
        Err(failure) if failure.code() == Some(code::STREAM_NOT_FOUND) => {
            let mut config = stream_config::wanted(settings, draw(), epoch);
            stream_config::mark_unfinished(&mut config, mark);
            let made = api::create_stream(asker, &stream, &config).await;
            return made
                .map(|()| false)
                .map_err(|failure| tried(failure, "make the stream"));
        }
        Err(failure) => return Err(tried(failure, "show the stream")),
    };

    let count = info.state.last_seq;
    match stream_config::unfinished(&info.config) {
        Some(said) if said == mark && count == 0 => return Ok(true),
        Some(_) if anew => {
            let deleted = api::delete_stream(asker, &stream).await;
            return deleted
                .map(|()| false)
                .map_err(|failure| tried(failure, "delete the stream"));
        }
        Some(what) => {
            let what = what.to_owned();
            return Err(Tried::Refused(NatsError::Unfinished { stream, what }));
        }
        None => {}
    }
    if count > 0 {
        return Err(Tried::Refused(NatsError::NotEmpty { stream, count }));
    }
    stream_config::check(settings, &info.config).map_err(Tried::Refused)?;
    let mut config = info.config;
    stream_config::set_identity(&mut config, draw(), epoch);
    stream_config::mark_unfinished(&mut config, mark);
    update(asker, &stream, &config).await
}

/// One step to a stream without the mark; true when it is there.
async fn end(
    asker: &mut Asker,
    settings: &Settings,
    mark: &str,
    messages: u64,
) -> Result<bool, Tried> {
    let stream = settings.stream();
    let info = api::stream_info(asker, &stream).await;
    let info = info.map_err(|failure| tried(failure, "show the stream"))?;
    let said = stream_config::unfinished(&info.config);
    let (first, last) = (info.state.first_seq, info.state.last_seq);
    // Once the mark is gone, nodes may have written already.
    if said.is_none() && last >= messages {
        return Ok(true);
    }
    if said != Some(mark) || first != 1 || last != messages {
        return Err(Tried::Refused(NatsError::Overtaken(stream)));
    }
    let mut config = info.config;
    stream_config::mark_finished(&mut config);
    update(asker, &stream, &config).await
}

async fn update(
    asker: &mut Asker,
    stream: &str,
    config: &Map<String, Value>,
) -> Result<bool, Tried> {
    let updated = api::update_stream(asker, stream, config).await;
    updated
        .map(|()| false)
        .map_err(|failure| tried(failure, "change the stream"))
}
