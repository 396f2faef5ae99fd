//! The frame and the rule by properties; the protocol in every order of its steps at small sizes ([`model`]), and at random at
//! larger ones ([`simulation`]). Both run the same nodes in the same [`world`], with the broker's own rule and state machine.

mod broken;
mod frames;
mod model;
mod protocol;
mod simulation;
mod world;
