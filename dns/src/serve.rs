//! The wire: questions in, answers out.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

use crate::forward;
use crate::zone::{Answer, Data, Kind};
use crate::{Error, Shared};

/// How long answers may be kept, in seconds: what kubeadm's clusters say.
const TTL: u32 = 30;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// How many answers may wait to be taken on a connection.
const ANSWERS: usize = 64;
/// How many names an alias may lead through.
const MAX_ALIASES: usize = 8;

struct Handler {
    zone: Shared,
    upstream: Vec<SocketAddr>,
}

/// Serves on the two sockets.
pub(crate) async fn run(zone: Shared, upstream: Vec<SocketAddr>, udp: UdpSocket, tcp: TcpListener) -> Result<(), Error> {
    let mut server = Server::new(Handler { zone, upstream });
    server.register_socket(udp);
    server.register_listener(tcp, IDLE, ANSWERS);
    server.block_until_done().await.map_err(|e| Error::Serve(e.to_string()))
}

fn kind(asked: RecordType) -> Kind {
    match asked {
        RecordType::A => Kind::A,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::CNAME => Kind::Cname,
        _ => Kind::Other,
    }
}

/// A record, unless a name in it can't be one.
fn record(name: &str, data: &Data) -> Option<Record> {
    let owner = Name::from_ascii(format!("{name}.")).ok()?;
    let full = |name: &str| Name::from_ascii(format!("{name}.")).ok();
    let data = match data {
        Data::A(ip) => RData::A(A(*ip)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, full(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(full(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Cname(target) => RData::CNAME(CNAME(full(target)?)),
    };
    Some(Record::from_rdata(owner, TTL, data))
}

/// The records of an answer.
#[derive(Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Handler {
    fn look_up(&self, name: &str, kind: Kind) -> Answer {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).answer(name, kind)
    }

    /// The start of authority that goes with a negative answer.
    fn authority(&self) -> Option<Record> {
        let domain = self.zone.read().unwrap_or_else(PoisonError::into_inner).domain().to_owned();
        let name = |text: String| Name::from_ascii(text).ok();
        let soa = SOA::new(name(format!("ns.dns.{domain}."))?, name(format!("hostmaster.{domain}."))?, 1, 7_200, 1_800, 86_400, TTL);
        Some(Record::from_rdata(name(format!("{domain}."))?, TTL, RData::SOA(soa)))
    }

    async fn reply(&self, request: &Request, name: &str, asked: RecordType) -> Reply {
        let mut reply = Reply { authoritative: true, ..Reply::default() };
        let mut name = name.to_owned();
        for _ in 0..MAX_ALIASES {
            match self.look_up(&name, kind(asked)) {
                Answer::Foreign if reply.answers.is_empty() => return self.forward(request.as_slice()).await,
                Answer::Foreign => {
                    // An alias led out of the cluster: its addresses are asked for elsewhere.
                    if let Some(question) = question(&name, asked) {
                        reply.answers.extend(self.forward(&question).await.answers);
                    }
                    return reply;
                }
                Answer::NoName => {
                    reply.code = ResponseCode::NXDomain;
                    reply.authorities.extend(self.authority());
                    return reply;
                }
                Answer::Records(records, helpful) => {
                    reply.answers.extend(records.iter().filter_map(|data| record(&name, data)));
                    reply.additionals.extend(helpful.iter().filter_map(|(name, data)| record(name, data)));
                    match records.as_slice() {
                        [] => reply.authorities.extend(self.authority()),
                        [Data::Cname(target)] if asked != RecordType::CNAME => {
                            name = target.clone();
                            continue;
                        }
                        _ => {}
                    }
                    return reply;
                }
            }
        }
        Reply { code: ResponseCode::ServFail, ..Reply::default() }
    }

    async fn forward(&self, question: &[u8]) -> Reply {
        match forward::ask(&self.upstream, question).await {
            Ok(answer) => Reply {
                code: answer.metadata.response_code,
                authoritative: false,
                answers: answer.answers,
                authorities: answer.authorities,
                additionals: answer.additionals,
            },
            Err(error) => {
                tracing::debug!(%error, "question could not be forwarded");
                Reply { code: ResponseCode::ServFail, ..Reply::default() }
            }
        }
    }
}

/// A question of our own, as a packet.
fn question(name: &str, asked: RecordType) -> Option<Vec<u8>> {
    use hickory_server::proto::op::{Message, MessageType, Query};
    let mut message = Message::new(skiff_api::random::below(1 << 16) as u16, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).ok()?, asked));
    message.to_vec().ok()
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let builder = MessageResponseBuilder::from_message_request(request);
        let sent = match request.request_info() {
            Ok(info) if request.metadata.op_code == OpCode::Query => {
                let name = info.query.name().to_string();
                let reply = self.reply(request, name.trim_end_matches('.'), info.query.query_type()).await;
                let mut metadata = Metadata::response_from_request(&request.metadata);
                metadata.response_code = reply.code;
                metadata.authoritative = reply.authoritative;
                metadata.recursion_available = true;
                let message = builder.build(metadata, &reply.answers, &reply.authorities, &[], &reply.additionals);
                response.send_response(message).await
            }
            _ => response.send_response(builder.error_msg(&request.metadata, ResponseCode::NotImp)).await,
        };
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, "answer could not be sent");
            let metadata = Metadata::response_from_request(&request.metadata);
            ResponseInfo::from(Header { metadata, counts: Default::default() })
        })
    }
}
