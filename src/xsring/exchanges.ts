// Pairs requests with their replies, from what is left of both streams. A server answers in order, and its reply
// repeats the request's id and type. hvmloader's ids are all 0, so the pairing starts from the newest.
import type { RingFragment, RingPacket, RingStreamView } from "../protocol/xs-ring-view.ts";
import type { XsHeader } from "../protocol/xs-content.ts";
import { XS_ERROR, XS_WATCH_EVENT } from "../protocol/xs-wire.ts";

/** A request and its reply, or one of them alone. A watch event is a reply without a request. */
export interface Exchange {
  readonly request: RingPacket | undefined;
  readonly reply: RingPacket | undefined;
}

/** Whether a reply with header `reply` answers `request`. */
export function answers(reply: XsHeader, request: XsHeader): boolean {
  return (
    reply.type !== XS_WATCH_EVENT &&
    reply.reqId === request.reqId &&
    (reply.type === request.type || reply.type === XS_ERROR)
  );
}

/** Pairs the consumed requests with all replies that are visible, oldest first. */
export function pairUp(requests: readonly RingPacket[], replies: readonly RingPacket[]): Exchange[] {
  const open = [...requests];
  const exchanges: Exchange[] = [];
  for (const reply of replies.toReversed()) {
    const match = open.findLastIndex((request) => answers(reply.header, request.header));
    if (match < 0) {
      exchanges.push({ request: undefined, reply });
      continue;
    }
    // Requests younger than the answered one have no reply yet.
    for (const request of open.splice(match).toReversed())
      exchanges.push({ request, reply: answers(reply.header, request.header) ? reply : undefined });
  }
  for (const request of open.toReversed()) exchanges.push({ request, reply: undefined });
  return exchanges.toReversed();
}

/**
 * The last request that the server took, if it certainly has not answered it: what is left of the responses reaches
 * back far enough to hold the answer, and does not.
 */
export function unansweredRequest(
  requests: RingStreamView,
  responses: RingStreamView,
): RingPacket | undefined {
  const last = requests.consumed.at(-1);
  if (last === undefined || requests.crossing !== undefined) return undefined;
  const fragments = [responses.crossing, responses.partial].filter(isKnown);
  const replies = [...responses.consumed, ...fragments, ...responses.waiting].flatMap(({ header }) =>
    header === undefined || header.type === XS_WATCH_EVENT ? [] : [header],
  );
  if (replies.length === 0) return responses.prod === 0 ? last : undefined;
  return replies.some((reply) => answers(reply, last.header)) ? undefined : last;
}

function isKnown(fragment: RingFragment | undefined): fragment is RingFragment {
  return fragment !== undefined;
}
