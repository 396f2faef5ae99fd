//! The console: the pages of the admin listener, what they are made of, and who is logged in. Pure; `server::console` answers requests
//! with it.
//!
//! The console is the JSON door below an address of its own: everything that it shows is an RPC, with the client's own rights.

mod assets;
mod headers;
mod places;
mod requests;
mod sessions;

pub(crate) use assets::{Asset, asset};
pub(crate) use headers::PageHeaders;
pub(crate) use places::{Place, Places};
pub(crate) use requests::{cookies, is_own, is_read_by_own_page};
pub(crate) use sessions::{IDLE_MAX, Session, Sessions};
