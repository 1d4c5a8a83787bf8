// Device handshakes through xenstore, public/io/xenbus.h: the states, and the paths of a device's two directories.

export const XenbusState = {
  Unknown: 0,
  Initialising: 1,
  InitWait: 2,
  Initialised: 3,
  Connected: 4,
  Closing: 5,
  Closed: 6,
  Reconfiguring: 7,
  Reconfigured: 8,
} as const;
export type XenbusState = (typeof XenbusState)[keyof typeof XenbusState];

const NAMES = Object.keys(XenbusState);

/** The state in a `state` node's value; Unknown if the node is missing or its value is not a state. */
export function parseXenbusState(text: string | null): XenbusState {
  return text !== null && /^[0-8]$/.test(text) ? (Number(text) as XenbusState) : XenbusState.Unknown;
}

/** "Connected" for 4. */
export function xenbusStateName(state: XenbusState): string {
  return NAMES[state] ?? "Unknown";
}

/** `/local/domain/<domid>/device/<type>/<devid>`, the frontend's directory. */
export function frontendPath(domid: number, type: string, devid: number): string {
  return `/local/domain/${domid}/device/${type}/${devid}`;
}

/** `/local/domain/<backend>/backend/<kind>/<frontend>/<devid>`, the backend's directory. */
export function backendPath(backend: number, kind: string, frontend: number, devid: number): string {
  return `/local/domain/${backend}/backend/${kind}/${frontend}/${devid}`;
}
