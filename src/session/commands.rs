//! What a client of `oyez.v1` says, as intents.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Desk;
use super::intent::{Intent, Receipt};
use crate::hub::Wish;
use crate::wire::Form;
use crate::wire::command::{self, Command, Request};
use crate::wire::notice::Notice;

/// Takes one text message. What is wrong with it is answered, and the conversation goes on.
pub(super) fn receive(text: &str, desk: &mut Desk<'_>) {
    let Request { reference, command } = command::parse(text);
    let owned = |reference: Option<&RawValue>| reference.map(RawValue::to_owned);
    let intent = match command {
        Ok(Command::Subscribe { channel, since, echo }) => Intent::Subscribe {
            channel,
            wish: Wish { form: Form::Envelope, since, echo },
            reference: owned(reference),
        },
        Ok(Command::Unsubscribe { channel }) => Intent::Unsubscribe { channel, reference: owned(reference) },
        Ok(Command::Publish { channel, kind, payload, key }) => Intent::Publish {
            channel: Some(channel),
            kind,
            payload: Bytes::from(payload.into_owned()),
            receipt: Receipt::Ack { reference: owned(reference), key: key.map(|key| Box::from(&*key)) },
        },
        Ok(Command::Ping) => Intent::Say(Notice::Pong.to_frame().into()),
        Ok(Command::Auth { .. }) => {
            let message = "this server asks nobody for a token";
            Intent::Say(Notice::Error { reference, ch: None, code: "no_auth", message }.to_frame().into())
        }
        Err(why) => {
            let notice = Notice::Error { reference, ch: None, code: why.code, message: &why.message };
            Intent::Say(notice.to_frame().into())
        }
    };
    desk.intents.push(intent);
}
