// A client's transaction: the same operations as outside, on its own view, until it ends.
import { XentoolError } from "../core/errors.ts";
import { encodeStrings, XS_TRANSACTION_END } from "../protocol/xs-wire.ts";
import type { XenstoreConnection } from "./connection.ts";
import { XenstoreOperations } from "./operations.ts";

export class XenstoreTransaction extends XenstoreOperations {
  /** The id that xenstored assigned. */
  readonly id: number;
  readonly #connection: XenstoreConnection;
  #ended = false;

  constructor(connection: XenstoreConnection, id: number) {
    super();
    this.#connection = connection;
    this.id = id;
  }

  /** Commits or discards the changes. Fails with errno EAGAIN if another client's change conflicts. */
  async end(commit: boolean): Promise<void> {
    const ending = this.request(XS_TRANSACTION_END, encodeStrings(commit ? "T" : "F"), `${this.id}`);
    this.#ended = true;
    await ending;
  }

  protected override request(type: number, payload: Uint8Array, subject: string): Promise<Uint8Array> {
    if (this.#ended)
      return Promise.reject(new XentoolError("bug", "a xenstore transaction was used after its end"));
    return this.#connection.request(type, this.id, payload, subject);
  }
}
