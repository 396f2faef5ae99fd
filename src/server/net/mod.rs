//! From a listening socket to a connection that can be served: which connections are accepted, which have a place, and TLS.

mod accept;
mod entrance;
mod per_address;
pub(super) mod places;
pub(crate) mod proxy;
pub(super) mod tls;
pub(super) mod pem_files;
mod stream;
mod preface;
mod turned_away;
mod floods;

pub(super) use self::{
    accept::{Acceptor, Counters},
    entrance::{Entrance, Opened},
    floods::Floods,
    per_address::Share,
    preface::{PREFACE, Protocol},
    stream::{LOOK, Stream},
    turned_away::{Refused, TurnedAway},
};
