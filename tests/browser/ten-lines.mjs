export function follow(url, onmessage, since = 'latest') {
  const socket = new WebSocket(`${url}?since=${since}`, 'oyez.v1')
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data)                 // with a type it is a notice: hello, gap, live...
    since = message.resume ?? message.id ?? since    // the cursor to resume from after a disconnect
    onmessage(message)
  }
  socket.onclose = ({ code, reason }) => (code < 4000 || code > 4099) &&
    setTimeout(follow, reason.match(/retry_ms=(\d+)/)?.[1] ?? Math.random() * 5000, url, onmessage, since)
}
