export function hear(url, onsaid, since = 'latest') {
  const socket = new WebSocket(`${url}?since=${since}`, 'oyez.v1')
  socket.onmessage = ({ data }) => {
    const said = JSON.parse(data)              // a message; or, with a type: hello, gap, live...
    since = said.resume ?? said.id ?? since    // from where to go on when the connection is lost
    onsaid(said)
  }
  socket.onclose = ({ code, reason }) => (code < 4000 || code > 4099) &&
    setTimeout(hear, reason.match(/retry_ms=(\d+)/)?.[1] ?? Math.random() * 5000, url, onsaid, since)
}
